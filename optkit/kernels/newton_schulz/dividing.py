"""The division of a matrix by its norm: a part of the kernel for TPUs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from optkit.kernels.blocks import LANES, RARE
from optkit.kernels.newton_schulz.products import tile_at
from optkit.linalg.normalise import EpsMode

# Its inverse is a normal number.
_LARGEST_PEAK = 2.0**126
# Squares, and squares of their sums, of numbers up to this and down to its inverse are normal.
_USUAL = 2.0**40

Carry = Any


class Division(NamedTuple):
    """What a matrix is divided by before the steps; see ``optkit.linalg.normalise``."""

    eps: float
    eps_mode: EpsMode
    margin: float


def copy(given: Any, x: Any) -> None:
    """Brings the matrix to where it is worked on."""

    def panel(i: jax.Array, carry: Carry) -> Carry:
        x[tile_at(i), :] = given[tile_at(i), :].astype(x.dtype)
        return carry

    lax.fori_loop(0, given.shape[0] // LANES, panel, 0)


def is_usual(value: jax.Array) -> jax.Array:
    """Whether a largest entry, or a sum of squares, is not far from 1; what is no number is not."""
    return (value > 1.0 / _USUAL) & (value < _USUAL)


def inverse_divisor(total: jax.Array, division: Division) -> jax.Array:
    """One over what a matrix is divided by, from its sum of squares (1, 1) in its own units."""
    return 1.0 / _divisor(jnp.sqrt(total), jnp.ones_like(total), division)


def divide(given: Any, x: Any, again: Any, division: Division) -> None:
    """Brings the matrix to where it is worked on, divided by its norm; of any units.

    Args:
      given: (m, n).
      x: (m, n), the result.
      again: scratch (1, n) in float32.
      division: by what.
    """
    panels, n = given.shape[0] // LANES, given.shape[1]

    def first(i: jax.Array, carry: Carry) -> Carry:
        y = given[tile_at(i), :].astype(jnp.float32)
        most, total = carry
        most = jnp.maximum(most, jnp.max(jnp.abs(y), axis=0, keepdims=True))
        return most, total + jnp.sum(y * y, axis=0, keepdims=True)

    zeros = jnp.zeros((1, n), jnp.float32)
    most, total = lax.fori_loop(0, panels, first, (zeros, zeros))
    most = jnp.max(most, axis=1, keepdims=True)
    inverse = _inverse_peak(most)
    again[...] = total * inverse * inverse
    # Squares of numbers far from 1 overflow or vanish: then they are summed once more.
    with jax.named_scope(RARE):

        @pl.when(~is_usual(most[0, 0]))
        def sum_again() -> None:
            def one(i: jax.Array, total: jax.Array) -> jax.Array:
                y = given[tile_at(i), :].astype(jnp.float32) * inverse
                return total + jnp.sum(y * y, axis=0, keepdims=True)

            again[...] = lax.fori_loop(0, panels, one, zeros)

    norm = jnp.sqrt(jnp.sum(again[...], axis=1, keepdims=True))
    rest = 1.0 / _divisor(norm, inverse, division)

    def panel(i: jax.Array, carry: Carry) -> Carry:
        # In two steps: both factors at once may be too small a number, or too large.
        y = given[tile_at(i), :].astype(jnp.float32) * inverse * rest
        x[tile_at(i), :] = y.astype(x.dtype)
        return carry

    lax.fori_loop(0, panels, panel, 0)


def _inverse_peak(largest: jax.Array) -> jax.Array:
    """One over the power of two below a number ``(1, 1)``: what has no normal number becomes 0."""
    alive = ~(largest < jnp.finfo(jnp.float32).tiny)
    known = jnp.clip(jnp.where(alive, largest, 1.0), None, _LARGEST_PEAK)
    exponent = lax.bitcast_convert_type(known, jnp.int32) & 0x7F800000
    return jnp.where(alive, 1.0 / lax.bitcast_convert_type(exponent, jnp.float32), 0.0)


def _divisor(norm: jax.Array, inverse: jax.Array, division: Division) -> jax.Array:
    scaled, eps = division.margin * norm, division.eps * inverse
    scaled = scaled + eps if division.eps_mode == "add" else jnp.maximum(scaled, eps)
    return jnp.where(scaled == 0.0, 1.0, scaled)


__all__ = ["Division", "copy", "divide", "inverse_divisor", "is_usual"]
