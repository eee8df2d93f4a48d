"""PSGD's step of a batch of tensors: the update, the fit of the factors, and when to fit."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.linalg.norms import to_unit_peak
from optkit.linalg.whitening import balanced, fit_whitening, kron_apply
from optkit.transforms.hyperparams import check_static_number

# The reference's: noise of the root of float32's resolution keeps unseen directions bounded.
_NOISE = math.sqrt(2.0**-23)


def psgd_update_probability(
    most: float = 1.0, least: float = 0.03, decay: float = 0.001, flat: int = 500
) -> Callable[[jax.Array], jax.Array]:
    """The course of ``update_probability`` that PSGD's references use.

    ``clip(most*exp(-decay*(n - flat)), least, most)`` with n the number of the update, from 1: the
    factors are fitted often while they are far from what they should be.

    Args:
      most: at first.
      least: in the end.
      decay: rate of the fall.
      flat: updates before it falls.

    Returns:
      A schedule.

    Raises:
      ValueError: ``least`` above ``most``, or numbers outside (0, 1].

    Example:
      >>> import optkit
      >>> chance = optkit.psgd_update_probability()
      >>> [round(float(chance(t)), 3) for t in (0, 1000, 10_000)]
      [1.0, 0.606, 0.03]
    """
    for name, value in {"most": most, "least": least, "decay": decay, "flat": flat}.items():
        check_static_number(name, value)
    if not 0.0 < least <= most <= 1.0:
        raise ValueError(f"least={least!r} and most={most!r}: give 0 < least <= most <= 1")

    def chance(count: jax.Array) -> jax.Array:
        n = jnp.asarray(count, jnp.float32) + 1.0
        return jnp.clip(most * jnp.exp(-decay * (n - flat)), least, most)

    return chance


def _capped(x: jax.Array, units: jax.Array, most: float | None, rank: int) -> jax.Array:
    """``x * units`` with a root mean square of at most ``most``, without leaving float32."""
    inside = tuple(range(x.ndim - rank, x.ndim))
    if most is None:
        return x * units
    y, peak = to_unit_peak(x, inside)
    rms = jnp.sqrt(jnp.mean(y * y, axis=inside, keepdims=True))
    return y * jnp.minimum(peak * units, most / jnp.where(rms > 0, rms, most))


def direction(
    x: jax.Array, *factors: jax.Array, most: float | None, precision: Any
) -> tuple[jax.Array]:
    """The update of tensors ``(*batch, *axes)``, in a tuple."""
    rank = len(factors)
    y, peak = to_unit_peak(x, tuple(range(x.ndim - rank, x.ndim)))
    y = kron_apply(factors, y, precision=precision)
    y = kron_apply(factors, y, transpose=True, precision=precision)
    return (_capped(y, peak, most, rank),)


def fitted(
    x: jax.Array,
    probe: jax.Array,
    *factors: jax.Array,
    rate: Any,
    coin: Any,
    precision: Any,
) -> tuple[jax.Array, ...]:
    """The new factors, and which tensors kept the old ones because the new were not finite."""
    rank = len(factors)
    inside = tuple(range(x.ndim - rank, x.ndim))
    even = balanced(factors, x.ndim - rank)
    held = tuple(jnp.where(coin, b, q) for b, q in zip(even, factors, strict=True))
    noisy = x + _NOISE * jnp.mean(jnp.abs(x), axis=inside, keepdims=True) * probe
    new = fit_whitening(held, noisy, probe, rate, precision=precision)
    good = functools.reduce(
        jnp.logical_and,
        [jnp.all(jnp.isfinite(q), axis=tuple(range(x.ndim - rank, q.ndim))) for q in new],
    )
    out = [
        jnp.where(good.reshape(good.shape + (1,) * (q.ndim - good.ndim)), q, old)
        for q, old in zip(new, factors, strict=True)
    ]
    return *out, (~good).astype(jnp.float32)
