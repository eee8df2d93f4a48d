"""Products of matrices in vector memory, tile by tile: parts of the kernel for TPUs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from optkit.kernels.blocks import LANES

Carry = Any


# Of this many multiplications in a row a tile by itself keeps the matrix units busy.
_LONG = 2048


def off_diagonal(tiles: int, depth: int) -> tuple[list[tuple[int, int]], ...]:
    """Returns the tiles below the diagonal, row and column: single ones, and the first of 2 and 3.

    Tiles below each other are one product: so the matrix units fill and drain less often.

    Example:
      >>> off_diagonal(4, 1024)
      ([(3, 2)], [(2, 1)], [(1, 0)])
    """
    out: tuple[list[tuple[int, int]], ...] = ([], [], [])
    for column in range(tiles - 1):
        row = column + 1
        while row < tiles:
            left = tiles - row
            height = 1 if depth >= _LONG else min(left, 2 + left % 2)
            out[height - 1].append((row, column))
            row += height
    return out


def symmetric(
    left: Any,
    right: Any,
    to: Any,
    end: Callable[..., jax.Array],
    *,
    gamma: jax.Array | None = None,
    trace: Any = None,
    table: Any,
    start: int,
    tile: int,
    precision: lax.PrecisionLike,
) -> None:
    """``end(left right^T) + gamma I``, symmetric, from tiles on and below the diagonal.

    Args:
      left: (m, k).
      right: (m, k).
      to: (m, m).
      end: of a product and where it stands, rows and columns.
      gamma: a number, or None.
      trace: (1, 128), to which the diagonal is added before ``end``, in parts; or None.
      table: the tiles of ``off_diagonal`` one after the other, from an entry on; last a 1.
      start: that entry.
      tile: rows of a tile.
      precision: of the products.
    """

    def off(entry: jax.Array, size: int) -> None:
        here = pl.ds(pl.multiple_of(table[2 * entry] * tile, tile), size)
        there = tile_at(table[2 * entry + 1], tile)
        y = end(_transposed(left[here, :], right[there, :], precision), here, there)
        y = y.astype(to.dtype)
        to[here, there] = y
        to[there, here] = y.T

    def on(i: jax.Array, carry: Carry) -> Carry:
        for at, y in _on_diagonal(left, right, end, gamma, trace, i, tile, precision):
            to[at] = y.astype(to.dtype)
        return carry

    tiles, first = to.shape[0] // tile, start
    for height, found in enumerate(off_diagonal(tiles, left.shape[1]), start=1):

        def trip(
            i: jax.Array, carry: Carry, first: int = first, size: int = height * tile
        ) -> Carry:
            off(first + i, size)
            return carry

        if found:
            count = len(found) if len(found) > 1 else table[table.shape[0] - 1]
            lax.fori_loop(0, count, trip, 0)
        first += len(found)
    lax.fori_loop(0, tiles, on, 0)


def _on_diagonal(
    left: Any,
    right: Any,
    end: Callable[..., jax.Array],
    gamma: jax.Array | None,
    trace: Any,
    i: jax.Array,
    tile: int,
    precision: lax.PrecisionLike,
) -> list[Any]:
    """A tile on the diagonal, of which, too, only what lies below it is computed: what to store."""
    here = tile_at(i, tile)
    if tile == LANES:
        y = _transposed(left[here, :], right[here, :], precision)
        corners, sides = [(y, here)], []
    else:
        half = tile // 2
        top, low = (pl.ds(pl.multiple_of(i * tile + k * half, half), half) for k in (0, 1))
        first = _transposed(left[here, :], right[top, :], precision)
        last = _transposed(left[low, :], right[low, :], precision)
        side = end(first[half:], low, top)
        corners, sides = [(first[:half], top), (last, low)], [((low, top), side)]
        sides.append(((top, low), side.T))
    for y, at in corners:
        if trace is not None:
            trace[...] += jnp.sum(jnp.where(_diagonal(), y, 0.0), axis=0, keepdims=True)
        z = end(y, at, at)
        z = 0.5 * (z + z.T)  # symmetric bit for bit
        sides.append(((at, at), z if gamma is None else jnp.where(_diagonal(), z + gamma, z)))
    return sides


def gram_slowly(x: Any, to: Any, precision: lax.PrecisionLike) -> None:
    """``X X^T``, as little code."""
    tiles = to.shape[0] // LANES

    def tile(i: jax.Array, carry: Carry) -> Carry:
        here, there = tile_at(lax.div(i, tiles)), tile_at(lax.rem(i, tiles))
        to[here, there] = _transposed(x[here, :], x[there, :], precision).astype(to.dtype)
        return carry

    lax.fori_loop(0, tiles * tiles, tile, 0)


def _diagonal() -> jax.Array:
    row, column = (lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    return row == column


def apply(
    factor: Any, x: Any, alpha: jax.Array, beta: jax.Array, columns: int, precision: Any
) -> None:
    """``X = alpha factor X + beta X``, in place."""

    def panel(j: jax.Array, carry: Carry) -> Carry:
        here = tile_at(j, columns)
        y = x[:, here]
        product = jnp.dot(factor[:, :], y, precision=precision, preferred_element_type=jnp.float32)
        x[:, here] = (alpha * product + beta * y.astype(product.dtype)).astype(x.dtype)
        return carry

    lax.fori_loop(0, x.shape[1] // columns, panel, 0)


def tile_at(i: jax.Array, size: int = LANES) -> Any:
    """Block i of an axis."""
    return pl.ds(pl.multiple_of(i * size, size), size)


def _transposed(a: jax.Array, b: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
    """``a b^T``."""
    over = (((1,), (1,)), ((), ()))
    return lax.dot_general(a, b, over, precision=precision, preferred_element_type=jnp.float32)


__all__ = ["apply", "gram_slowly", "off_diagonal", "symmetric", "tile_at"]
