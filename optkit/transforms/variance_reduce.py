"""MARS's gradient: corrected by how it changed, which takes noise out of the momentum."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, map_updates
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast, zeros_like_params


class VarianceReduceState(NamedTuple):
    """State of ``variance_reduce``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    last: PyTree  # like params, state_dtype: the last gradient; None with exact=True
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="accumulator",
    paper=(
        "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
        "2411.10438",
        2024,
    ),
    state_bytes={"*": 4},
    tags=("mars", "variance reduction"),
    chain="c = g + gamma b1/(1-b1) (g - last)",
)
def variance_reduce(
    gamma: ScalarOrSchedule = 0.025,
    b1: ScalarOrSchedule = 0.95,
    *,
    exact: bool = False,
    start: Literal["zero", "gradient"] = "zero",
    state_dtype: Any | None = None,
) -> Transformation:
    """Adds to the gradient a multiple of its change since the last step.

    1. ``c = g + gamma*b1/(1-b1)*(g - last)``; 2. ``last <- g``.

    It stands before a momentum of the same ``b1``, which it makes a variance-reduced one (for
    ``gamma = 1`` STORM's: ``m - g = b1*(m_old - last)``). ``last`` is

    * the gradient of the last update, of another batch (approximate, the default); or
    * the extra argument ``prev_grad``: the gradient of this batch at the parameters before the last
      update (exact, a second gradient each step): ``tx.update(g, state, params, prev_grad=...)``.

    Without a clip the approximate form needs no buffer beside the momentum:
    ``momentum(b1)`` of ``c`` is ``optkit.blend_momentum((1-gamma)*b1, b1)`` of ``g``, and with
    ``gamma = 1-b1`` it is Nesterov's.

    Args:
      gamma: strength, at least 0; 0 passes the gradient on.
      b1: decay rate of the momentum that follows, in [0, 1).
      exact: keep no last gradient and insist on ``prev_grad``.
      start: what stands for ``last`` in the first update. "zero", as the reference has it, makes
        ``c = (1 + gamma*b1/(1-b1))*g``; "gradient", as the paper has it, makes ``c = g``.
      state_dtype: dtype of ``last``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      one state_dtype number per parameter, none with ``exact``.

    Raises:
      ValueError: a number out of range, or ``exact`` and no ``prev_grad``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.variance_reduce(0.5, 0.5)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for g in (2.0, 3.0):
      ...   c, state = tx.update({"w": jnp.array([g])}, state)
      ...   print(float(c["w"][0]))
      3.0
      3.5
      >>> float(tx.update({"w": jnp.ones(1)}, state, prev_grad={"w": jnp.zeros(1)})[0]["w"][0])
      1.5

    Reference:
      Yuan et al., MARS, arXiv 2411.10438. Its code keeps a second gradient in exact mode; here the
      caller hands it over.
    """
    check_number("gamma", gamma, low=0.0)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_choice("start", start, ("zero", "gradient"))

    def init_fn(params: PyTree) -> VarianceReduceState:
        count = jnp.zeros((), jnp.int32)
        last = None if exact else zeros_like_params(params, state_dtype)
        return VarianceReduceState(count, last, recorded(count, gamma=gamma, b1=b1))

    def update_fn(
        updates: PyTree,
        state: VarianceReduceState,
        params: PyTree | None = None,
        *,
        prev_grad: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, VarianceReduceState]:
        del params, extra_args
        if exact and prev_grad is None:
            raise ValueError(
                "variance_reduce(exact=True) needs the gradient of this batch at the previous "
                "parameters: call tx.update(grads, state, params, prev_grad=...), at the first "
                "step with the gradient itself or zeros, or build it with exact=False"
            )
        decay = value_at(b1, state.count)
        weight = value_at(gamma, state.count) * decay / (1.0 - decay)

        def change(g: jax.Array, last: jax.Array) -> jax.Array:
            if prev_grad is None and start == "gradient":
                last = jnp.where(state.count == 0, g, last)
            return g + weight * (g - last)

        # Compared with what is held even where prev_grad takes its place.
        kept = None if exact else map_leaves(_kept, updates, state.last)
        out = map_updates(change, updates, state.last if prev_grad is None else prev_grad)
        new = recorded(state.count, gamma=gamma, b1=b1)
        return out, VarianceReduceState(state.count + 1, kept, new)

    return Transformation(init_fn, update_fn)


def _kept(g: jax.Array, last: jax.Array) -> jax.Array:
    return upcast(g).astype(last.dtype)
