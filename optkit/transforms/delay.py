"""Gradients that arrive late: a simulator of pipelined and asynchronous training."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_transformation, map_leaves, update_inner
from optkit.transforms.hyperparams import check_static_int
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
def delay_gradients(inner: optax.GradientTransformation, steps: int) -> Transformation:
    """Hands the inner optimizer the gradient of ``steps`` updates ago.

    1. Put ``g`` into a ring of ``steps`` gradients, and take out the one that is oldest;
    2. ``u <- inner(oldest)``; in the first ``steps`` updates none has arrived: ``u = 0``, and the
       inner state stays as it is.

    What is applied at update ``t`` was computed with the parameters of update ``t - steps``, as in
    a pipeline without flushes or with workers that are behind. It stands alone as a simulator: the
    means against delay can be tested on one device. Each step reads and writes the whole ring.

    Args:
      inner: any transformation; it sees today's parameters and extra arguments.
      steps: how late gradients are; 0 returns ``inner``.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      ``4*steps`` per float32 parameter beside the inner state, sharded like the parameters.

    Raises:
      ValueError: ``steps`` is no integer of at least 0.
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
        **extra_args: Any,
    ) -> tuple[PyTree, DelayGradientsState]:
        place = state.count % steps

        def oldest(g: jax.Array, *held: jax.Array) -> jax.Array:
            out = held[0]
            for index, x in enumerate(held[1:], 1):
                out = jnp.where(place == index, x, out)
            return out.astype(g.dtype)

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
        arrived = state.count >= steps
        out = jax.tree.map(lambda u: jnp.where(arrived, u, jnp.zeros_like(u)), out)
        new = jax.tree.map(lambda a, b: jnp.where(arrived, a, b), new, state.inner)
        return out, DelayGradientsState(state.count + 1, ring, new)

    return Transformation(init_fn, update_fn)
