"""First moments: exponential average, heavy ball, Nesterov look-ahead, Lion's two-rate blend."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.hyperparams import (
    debias as debias_weight,
)
from optkit.tree import PyTree, upcast, zeros_like_params


class MomentumState(NamedTuple):
    """State of ``momentum`` and ``blend_momentum``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="accumulator",
    state_bytes={"*": 4},
    tags=("momentum",),
    chain="m <- b1 m + (1-b1) g",
)
def momentum(
    b1: ScalarOrSchedule = 0.9,
    *,
    kind: Literal["ema", "heavy_ball"] = "ema",
    dampening: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    debias: bool = False,
    state_dtype: Any | None = None,
) -> Transformation:
    r"""Replaces updates by their momentum.

    With ``n`` the number of the update, counted from 1:

    1. ``m <- b1*m + (1-b1)*g`` (``"ema"``) or ``m <- b1*m + (1-dampening)*g`` (``"heavy_ball"``);
    2. ``u = m``; with ``nesterov`` ``u = (1-b1)*g + b1*m`` or ``u = g + b1*m``;
    3. with ``debias`` ``u = m / (1-b1**n)``; with ``nesterov`` as well
       ``u = b1*m/(1-b1**(n+1)) + (1-b1)*g/(1-b1**n)``, which is NAdam's and optax.contrib.muon's.

    Both kinds point the same way; they differ by the factor ``1-b1``, which a following
    ``orthogonalize`` removes.

    Args:
      b1: decay rate in [0, 1), a number or a schedule.
      kind: what is kept.
      dampening: share of the gradient that a heavy ball leaves out, in [0, 1], as torch's SGD has
        it; ``dampening=b1`` is ``"ema"`` but for the look-ahead.
      nesterov: look one step ahead.
      debias: divide by the sum of the weights; for ``"ema"`` only.
      state_dtype: dtype of ``m``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates.
      State bytes: one state_dtype number per parameter.

    Raises:
      ValueError: ``b1`` outside [0, 1), an unknown kind, ``debias`` with ``"heavy_ball"``, or
        ``dampening`` with ``"ema"``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.momentum(0.5)
      >>> update, state = tx.update({"w": jnp.ones(2)}, tx.init({"w": jnp.zeros(2)}))
      >>> update["w"].tolist()
      [0.5, 0.5]

    Reference:
      Nesterov look-ahead and debiasing: Dozat, Incorporating Nesterov Momentum into Adam, 2016.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_choice("kind", kind, ("ema", "heavy_ball"))
    if debias and kind == "heavy_ball":
        raise ValueError("debias=True needs kind='ema': a heavy ball has no weights that sum to 1")
    check_number("dampening", dampening, low=0.0, high=1.0)
    damped = not (isinstance(dampening, int | float) and dampening == 0)
    # An array may be the 0 that inject_hyperparams made one of.
    if damped and kind == "ema" and not isinstance(dampening, jax.Array):
        raise ValueError(
            f"dampening={dampening!r} needs kind='heavy_ball': an average weighs gradients by 1-b1"
        )

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, b1=b1, dampening=dampening)

    def init_fn(params: PyTree) -> MomentumState:
        count = jnp.zeros((), jnp.int32)
        return MomentumState(count, zeros_like_params(params, state_dtype), record(count))

    def update_fn(
        updates: PyTree, state: MomentumState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MomentumState]:
        del params, extra_args
        b = value_at(b1, state.count)
        n = state.count + 1
        ema = kind == "ema"
        fresh = 1.0 - (b if ema else value_at(dampening, state.count)) if ema or damped else 1.0

        def step(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            g32 = upcast(g)
            new = b * upcast(m) + fresh * g32
            if nesterov and debias:
                ahead = b / debias_weight(b, n + 1) * new + fresh / debias_weight(b, n) * g32
            elif nesterov:
                ahead = (fresh * g32 if ema else g32) + b * new
            else:
                ahead = new / debias_weight(b, n) if debias else new
            return ahead.astype(g.dtype), new.astype(m.dtype)

        out, new = unzip(updates, map_leaves(step, updates, state.momentum), 2)
        return out, MomentumState(n, new, record(state.count))

    return Transformation(init_fn, update_fn)


@register(
    kind="part",
    family="accumulator",
    paper=("Symbolic Discovery of Optimization Algorithms", "2302.06675", 2023),
    state_bytes={"*": 4},
    tags=("momentum",),
    chain="u = b1 m + (1-b1) g, m <- b2 m + (1-b2) g",
)
def blend_momentum(
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    *,
    state_dtype: Any | None = None,
) -> Transformation:
    """Blends the old momentum with the gradient, and decays the momentum at another rate.

    1. ``u = b1*m + (1-b1)*g`` with the old ``m``;
    2. ``m <- b2*m + (1-b2)*g``.

    With constants ``b1 <= b2`` it computes 2 first, and of the new ``m`` the same ``u =
    b1/b2*m + (1-b1/b2)*g``, which spares XLA's CPU compiler a copy of the momentum.

    Args:
      b1: weight of the old momentum in the update, in [0, 1].
      b2: decay rate of the momentum, in [0, 1).
      state_dtype: dtype of ``m``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates.
      State bytes: one state_dtype number per parameter.

    Raises:
      ValueError: a rate outside its interval.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.blend_momentum(0.75, 0.5)
      >>> u, state = tx.update({"w": jnp.ones(1)}, tx.init({"w": jnp.zeros(1)}))
      >>> u["w"].tolist(), state.momentum["w"].tolist()
      ([0.25], [0.5])

    Reference:
      Chen et al., Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675.
    """
    check_number("b1", b1, low=0.0, high=1.0)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)

    def init_fn(params: PyTree) -> MomentumState:
        count = jnp.zeros((), jnp.int32)
        m = zeros_like_params(params, state_dtype)
        return MomentumState(count, m, recorded(count, b1=b1, b2=b2))

    def update_fn(
        updates: PyTree, state: MomentumState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MomentumState]:
        del params, extra_args
        blend, keep = value_at(b1, state.count), value_at(b2, state.count)
        # The blend of the old momentum is one of the new momentum, too. Where the old one makes
        # two results, a compiler that writes one at a time has to copy it before it is overwritten.
        from_new = isinstance(keep, float) and isinstance(blend, float) and 0.0 < keep >= blend
        share = blend / keep if from_new else blend

        def step(g: jax.Array, m: jax.Array) -> tuple[jax.Array, jax.Array]:
            g32, old = upcast(g), upcast(m)
            new = keep * old + (1.0 - keep) * g32
            out = share * (new if from_new else old) + (1.0 - share) * g32
            return out.astype(g.dtype), new.astype(m.dtype)

        out, new = unzip(updates, map_leaves(step, updates, state.momentum), 2)
        return out, MomentumState(state.count + 1, new, recorded(state.count, b1=b1, b2=b2))

    return Transformation(init_fn, update_fn)
