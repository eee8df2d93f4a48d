"""Gradients that arrive late: a simulator of pipelined and asynchronous training."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_transformation, map_leaves, update_inner
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import PyTree, upcast, zeros_like_params


class DelayGradientsState(NamedTuple):
    """State of ``delay_gradients``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    ring: tuple[PyTree, ...]  # `steps` trees like params, float32: gradients on their way
    inner: PyTree  # state of the inner transformation


@register(
    kind="wrapper",
    family="accumulation",
    state_bytes={"*": 8},
    tags=("delay", "asynchronous", "pipeline", "simulator"),
    chain="inner of the gradient of some steps ago",
    example={"steps": 2},
)
def delay_gradients(
    inner: optax.GradientTransformation,
    steps: int,
    *,
    warmup: Literal["skip", "zeros", "fresh"] = "skip",
) -> Transformation:
    """Hands the inner optimizer the gradient of ``steps`` updates ago.

    1. Put ``g`` into a ring of ``steps`` gradients, and take out the one that is oldest;
    2. ``u <- inner(oldest)``. In the first ``steps`` updates none has arrived: with "skip"
       ``u = 0``, and the inner state stays as it is; with "zeros" the inner one is fed zeros; with
       "fresh", today's gradient.

    What is applied at update ``t`` was computed with the parameters of update ``t - steps``, as in
    a pipeline without flushes or with workers that are behind. It stands alone as a simulator: the
    means against delay can be tested on one device. Each step reads and writes the whole ring.

    Delays that vary: ``tx.update(grads, state, params, delay=d)`` takes the gradient of ``d``
    updates ago, a traced integer up to ``steps``; the same one may be taken twice, or never. To
    take gradients at the parameters of some steps ago, see ``optkit.federated.stale_params``.

    Args:
      inner: any transformation; it sees today's parameters and extra arguments.
      steps: how late gradients are, or how late they are at most; 0 returns ``inner``.
      warmup: see above.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates; ``update``
      takes ``delay``, clipped to 0 and ``steps``, ``steps`` by default. State bytes:
      ``4*steps`` per float32 parameter beside the inner state, sharded like the parameters.

    Raises:
      ValueError: ``steps`` is no integer of at least 0, or an unknown ``warmup``.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.delay_gradients(optax.sgd(1.0), 2)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for g in (1.0, 2.0, 3.0, 4.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state)
      ...   print(float(u["w"][0]) + 0.0)
      0.0
      0.0
      -1.0
      -2.0

    Reference:
      Ours; the setting is that of Venigalla et al., Adaptive Braking for Mitigating Gradient Delay,
      arXiv 2007.01397.
    """
    check_static_int("steps", steps, low=0)
    check_choice("warmup", warmup, ("skip", "zeros", "fresh"))
    inner = check_transformation("inner", inner)
    if steps == 0:
        return inner

    def init_fn(params: PyTree) -> DelayGradientsState:
        ring = tuple(zeros_like_params(params) for _ in range(steps))
        return DelayGradientsState(jnp.zeros((), jnp.int32), ring, inner.init(params))

    def update_fn(
        updates: PyTree,
        state: DelayGradientsState,
        params: PyTree | None = None,
        *,
        delay: Any = None,
        **extra_args: Any,
    ) -> tuple[PyTree, DelayGradientsState]:
        place = state.count % steps
        back = steps if delay is None else jnp.clip(jnp.asarray(delay, jnp.int32), 0, steps)
        source, arrived = (state.count - back) % steps, state.count >= back

        def oldest(g: jax.Array, *held: jax.Array) -> jax.Array:
            out = held[0]  # zeros where nothing has come
            for index, x in enumerate(held[1:], 1):
                out = jnp.where(source == index, x, out)
            out = out.astype(g.dtype)
            if delay is not None:
                out = jnp.where(back == 0, g, out)
            return jnp.where(arrived, out, g) if warmup == "fresh" else out

        delayed = map_leaves(oldest, updates, *state.ring)
        # Trees and not a stack, so that each lies on a mesh as its parameters do.
        ring = tuple(
            jax.tree.map(
                lambda g, x, index=index: jnp.where(place == index, upcast(g).astype(x.dtype), x),
                updates,
                tree,
            )
            for index, tree in enumerate(state.ring)
        )
        out, new = update_inner(inner, delayed, state.inner, params, extra_args)
        if warmup == "skip":
            out = jax.tree.map(lambda u: jnp.where(arrived, u, jnp.zeros_like(u)), out)
            new = jax.tree.map(lambda a, b: jnp.where(arrived, a, b), new, state.inner)
        return out, DelayGradientsState(state.count + 1, ring, new)

    return Transformation(init_fn, update_fn)
