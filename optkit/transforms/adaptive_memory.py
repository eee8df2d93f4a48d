"""Momentum that decides at each step, from a model of the loss, how much of itself to keep."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_leaves, unzip
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast, zeros_like_params

PAPER = (
    "Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization",
    "2510.04988",
    2025,
)


class AdaptiveMemoryState(NamedTuple):
    """State of ``adaptive_memory``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    memory: PyTree  # like params, state_dtype (float32 for 16-bit parameters): d
    beta: jax.Array  # float32 scalar, the coefficient of the last update
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def bounded_ratio(numerator: jax.Array, denominator: jax.Array, bound: Scalar) -> jax.Array:
    """``clip(numerator/denominator, 0, bound)``; 0 where there is no ratio, as for d = g."""
    ratio = numerator / jnp.where(denominator > 0, denominator, 1.0)
    defined = (denominator > 0) & jnp.isfinite(ratio)
    return jnp.where(defined, jnp.clip(ratio, 0.0, bound), 0.0)


def _largest(trees: Sequence[PyTree]) -> jax.Array:
    """A unit in which squares of the entries neither overflow nor all vanish."""
    peaks = [jnp.max(jnp.abs(upcast(x))) for x in jax.tree.leaves(trees) if x.size]
    largest = jnp.max(jnp.stack([peak.astype(jnp.float32) for peak in peaks] or [jnp.zeros(())]))
    usable = (largest >= jnp.finfo(jnp.float32).tiny) & jnp.isfinite(largest)
    return jnp.where(usable, largest, 1.0)


@register(
    kind="part",
    family="accumulator",
    paper=PAPER,
    state_bytes={"*": 4},
    tags=("momentum", "adaptive momentum"),
    chain="beta from g and d; d <- (beta+lam)/(1+lam) d + (1-beta)/(1+lam) g",
)
def adaptive_memory(
    b1: ScalarOrSchedule = 0.9,
    *,
    lam: ScalarOrSchedule = 0.1,
    state_dtype: Any | None = None,
) -> Transformation:
    """Replaces updates by a momentum whose coefficient is computed anew at each step.

    The loss is modelled by the larger of two planes, of slopes ``g`` and ``d``; the step that
    minimises the model, plus a penalty of weight ``lam`` on leaving the old direction, has

    1. ``beta = clip((|g|^2 + 2*lam*<g, d> - lam*|d|^2) / |d - g|^2, 0, b1)``, norms and products
       over all leaves together, and 0 where ``d = g``;
    2. ``d <- (beta + lam)/(1 + lam)*d + (1 - beta)/(1 + lam)*g``; ``u = d``.

    The first update has ``d = g``. ``beta`` does not depend on the learning rate nor on the scale
    of the gradients. Gradients that shrink let the momentum go; gradients of one size that are
    noise, or that agree, put ``beta`` at its bound. ``lam = 0`` leaves
    ``beta = |g|^2/|g - d|^2``, the momentum of ``optkit.momentum(beta)``.

    Args:
      b1: largest coefficient, in [0, 1).
      lam: weight of the penalty, at least 0: a share ``lam/(1+lam)`` of ``d`` is always kept.
      state_dtype: dtype of ``d``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      one state_dtype number per parameter. ``state.beta`` is the coefficient used last. It reads
      the gradient and ``d`` three times, for the largest entry, the products and the update; on a
      mesh it exchanges a maximum and two numbers.

    Raises:
      ValueError: ``b1`` outside [0, 1) or ``lam`` below 0.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.adaptive_memory(0.9, lam=0.0)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for g in (2.0, 1.0, 1.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state)
      ...   print(round(float(state.beta), 3), round(float(u["w"][0]), 3))
      0.0 2.0
      0.9 1.9
      0.9 1.81

    Reference:
      Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization, arXiv
      2510.04988. No code of its authors is public; recorded trajectories are of a third party's.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("lam", lam, low=0.0)

    def init_fn(params: PyTree) -> AdaptiveMemoryState:
        count = jnp.zeros((), jnp.int32)
        memory = zeros_like_params(params, state_dtype)
        return AdaptiveMemoryState(
            count, memory, jnp.zeros((), jnp.float32), recorded(count, b1=b1, lam=lam)
        )

    def update_fn(
        updates: PyTree, state: AdaptiveMemoryState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdaptiveMemoryState]:
        del params, extra_args
        bound, weight = (value_at(value, state.count) for value in (b1, lam))
        first = state.count == 0
        unit = _largest((updates, state.memory))

        def products(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
            g32, d32 = upcast(g) / unit, upcast(d) / unit
            over = g32 * g32 + weight * d32 * (2.0 * g32 - d32)
            return jnp.sum(over), jnp.sum(jnp.square(d32 - g32))

        pairs = map_leaves(products, updates, state.memory)
        over, under = (
            sum(jax.tree.leaves(part), jnp.zeros(())) for part in unzip(updates, pairs, 2)
        )
        # At the first update d is taken for g.
        beta = jnp.where(first, 0.0, bounded_ratio(over, under, bound)).astype(jnp.float32)
        keep = jnp.where(first, 0.0, (beta + weight) / (1.0 + weight))
        fresh = jnp.where(first, 1.0, (1.0 - beta) / (1.0 + weight))

        def step(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = keep * upcast(d) + fresh * upcast(g)
            return new.astype(g.dtype), new.astype(d.dtype)

        out, memory = unzip(updates, map_leaves(step, updates, state.memory), 2)
        new = recorded(state.count, b1=b1, lam=lam)
        return out, AdaptiveMemoryState(state.count + 1, memory, beta, new)

    return Transformation(init_fn, update_fn)
