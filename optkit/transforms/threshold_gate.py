"""CLASSP's two halves: small gradients are dropped, and busy weights move less."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, map_updates, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast, zeros_like_params

Compat = Literal["official"] | None
_PAPER = (
    "CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment "
    "Suppression and Sparsity Promotion",
    "2405.09637",
    2024,
)


class ThresholdGateState(NamedTuple):
    """State of ``threshold_gate``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def check_compat(compat: Any) -> None:
    """Raises ValueError unless a value is None or "official"."""
    if compat is not None:
        check_choice("compat", compat, ("official",))


@register(
    kind="part",
    family="continual",
    paper=_PAPER,
    state_bytes={"*": 0},
    tags=("classp", "sparsity"),
    chain="g 1[g^2 > threshold]",
)
def threshold_gate(threshold: ScalarOrSchedule = 0.5, *, compat: Compat = None) -> Transformation:
    """Drops the entries of the gradient whose square does not exceed a threshold.

    ``u = g*1[g**2 > threshold]``, entry by entry. A threshold of 0 drops nothing, and as entries
    are compared with its root, their squares may underflow.

    Args:
      threshold: least square, in squared units of the gradient, at least 0.
      compat: "official" does what the reference does instead: there ``any(g**2 != 0)``, which is 0
        or 1, is compared with the threshold, so that below 1 everything passes and from 1 on
        nothing.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      0 per parameter.

    Raises:
      ValueError: a negative threshold, or an unknown compat.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.threshold_gate(1.0)
      >>> tx.update({"w": jnp.array([2.0, -0.5, -3.0])}, tx.init({}))[0]["w"].tolist()
      [2.0, 0.0, -3.0]

    Reference:
      Ludwig, CLASSP, arXiv 2405.09637.
    """
    check_number("threshold", threshold, low=0.0)
    check_compat(compat)

    def init_fn(params: PyTree) -> ThresholdGateState:
        del params
        count = jnp.zeros((), jnp.int32)
        return ThresholdGateState(count, recorded(count, threshold=threshold))

    def update_fn(
        updates: PyTree, state: ThresholdGateState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ThresholdGateState]:
        del params, extra_args
        least = value_at(threshold, state.count)
        root = jnp.sqrt(least) if isinstance(least, jax.Array) else math.sqrt(least)

        def gate(g: jax.Array) -> jax.Array:
            passes = least < 1.0 if compat == "official" else jnp.abs(g) > root
            return jnp.where(passes, g, 0.0)

        new = recorded(state.count, threshold=threshold)
        return map_updates(gate, updates), ThresholdGateState(state.count + 1, new)

    return Transformation(init_fn, update_fn)


class ScaleByGradientSumState(NamedTuple):
    """State of ``scale_by_gradient_sum``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    total: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="accumulator",
    paper=_PAPER,
    state_bytes={"*": 4},
    tags=("classp", "adagrad"),
    chain="A <- A + |g|^q, g / (eps + A)^(1/q)",
)
def scale_by_gradient_sum(
    power: ScalarOrSchedule = 1.0,
    *,
    eps: ScalarOrSchedule = 1e-5,
    compat: Compat = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides by what has come in so far: AdaGrad for any power.

    1. ``A <- A + abs(g)**power``; 2. ``u = g/(eps + A)**(1/power)``, and 0 for 0/0.

    ``power=2`` is AdaGrad with eps inside the root; with ``power=1`` steps fall as ``1/t``. ``A``
    never falls, which in 16 bits would soon mean that it never rises either.

    Args:
      power: ``q`` of the paper, above 0.
      eps: added to the sum.
      compat: "official" adds ``abs(g)`` whatever the power, as the reference does, which computes
        the power and drops it.
      state_dtype: dtype of ``A``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      one number per parameter.

    Raises:
      ValueError: a power of 0 or below, a negative eps, or an unknown compat.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_gradient_sum(eps=0.0)
      >>> state = tx.init({"w": jnp.zeros(2)})
      >>> for _ in range(2):
      ...   u, state = tx.update({"w": jnp.array([3.0, 0.0])}, state)
      >>> u["w"].tolist()
      [0.5, 0.0]

    Reference:
      Ludwig, CLASSP, arXiv 2405.09637.
    """
    check_number("power", power, low=0.0)
    if not isinstance(power, jax.Array) and power == 0:
        raise ValueError("power=0 has no root; give a number above 0")
    check_number("eps", eps, low=0.0)
    check_compat(compat)

    def init_fn(params: PyTree) -> ScaleByGradientSumState:
        count = jnp.zeros((), jnp.int32)
        total = zeros_like_params(params, state_dtype)
        return ScaleByGradientSumState(count, total, recorded(count, power=power, eps=eps))

    def update_fn(
        updates: PyTree,
        state: ScaleByGradientSumState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByGradientSumState]:
        del params, extra_args
        q, e = value_at(power, state.count), value_at(eps, state.count)

        def raised(x: jax.Array, to: Any) -> jax.Array:
            if not isinstance(to, jax.Array) and to in (0.5, 1.0, 2.0):
                return {0.5: jnp.sqrt, 1.0: jnp.asarray, 2.0: jnp.square}[float(to)](x)
            return jnp.power(x, to)

        def step(g: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
            size = jnp.abs(upcast(g))
            new = upcast(total) + (size if compat == "official" else raised(size, q))
            below = raised(e + new, 1.0 / q)
            out = upcast(g) / jnp.where(below > 0, below, 1.0)
            return out.astype(g.dtype), new.astype(total.dtype)

        out, total = unzip(updates, map_leaves(step, updates, state.total), 2)
        new = recorded(state.count, power=power, eps=eps)
        return out, ScaleByGradientSumState(state.count + 1, total, new)

    return Transformation(init_fn, update_fn)


def unscaled(inner: optax.GradientTransformation) -> Transformation:
    """Keeps the statistics of a direction and hands on what came in: CLASSP without its scaling."""
    tx = optax.with_extra_args_support(inner)

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        return updates, tx.update(updates, state, params, **extra_args)[1]

    return Transformation(tx.init, update_fn)
