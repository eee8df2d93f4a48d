"""The second moment alone: Adam without momentum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.hyperparams import debias as corrected
from optkit.tree import PyTree, upcast, zeros_like_params


class ScaleByRmsState(NamedTuple):
    """State of ``scale_by_rms``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    nu: PyTree  # like params, second moment
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="accumulator",
    paper=("Adam: A Method for Stochastic Optimization", "1412.6980", 2014),
    state_bytes={"*": 4},
    tags=("adam",),
    chain="v -> g / (sqrt(v/c2) + eps)",
)
def scale_by_rms(
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    *,
    debias: bool = True,
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides the gradient by the root of its corrected second moment, Adam without momentum.

    1. ``v <- b2*v + (1-b2)*g**2``; 2. ``u = g / (sqrt(v/(1-b2**n)) + eps)``, ``n`` updates so far.

    ``optkit.scale_by_adam(0.0, b2, eps)`` gives the same and keeps a first moment for nothing. It
    is the base of methods whose momentum lies elsewhere, such as ``optkit.schedule_free``.

    Args:
      b2: decay rate of the second moment.
      eps: added to the root.
      debias: False leaves ``/(1-b2**n)`` out, as RMSProp does: first steps are then some
        ``1/sqrt(1-b2)`` times as long.
      state_dtype: dtype of the moment; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      4 per float32 parameter.

    Raises:
      ValueError: a rate outside its interval.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_rms()
      >>> u, _ = tx.update({"w": jnp.array([4.0, -0.1])}, tx.init({"w": jnp.zeros(2)}))
      >>> [round(float(x), 4) for x in u["w"]]
      [1.0, -1.0]

    Reference:
      Kingma and Ba, Adam, arXiv 1412.6980, with b1 = 0.
    """
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)

    def init_fn(params: PyTree) -> ScaleByRmsState:
        count = jnp.zeros((), jnp.int32)
        return ScaleByRmsState(
            count, zeros_like_params(params, state_dtype), recorded(count, b2=b2, eps=eps)
        )

    def update_fn(
        updates: PyTree, state: ScaleByRmsState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScaleByRmsState]:
        del params, extra_args
        a2, e = value_at(b2, state.count), value_at(eps, state.count)
        correction = corrected(a2, state.count + 1) if debias else 1.0

        def step(g: jax.Array, nu: jax.Array) -> tuple[jax.Array, jax.Array]:
            g32 = upcast(g)
            v = a2 * upcast(nu) + (1.0 - a2) * jnp.square(g32)
            root = jnp.sqrt(v / correction) + e
            u = g32 / jnp.where(root == 0.0, 1.0, root)
            return u.astype(g.dtype), v.astype(nu.dtype)

        out, nu = unzip(updates, map_leaves(step, updates, state.nu), 2)
        new = recorded(state.count, b2=b2, eps=eps)
        return out, ScaleByRmsState(state.count + 1, nu, new)

    return Transformation(init_fn, update_fn)
