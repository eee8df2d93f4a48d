"""Which entry of a small sorted table is nearest, by a lookup in place of a search."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

_MOST_MANTISSA_BITS = 12


class _Cells(NamedTuple):
    """A partition of the floats by their leading bits, at most one threshold in each cell."""

    shift: int  # bits that do not tell cells apart
    first: int  # leading bits of the first cell
    size: int  # number of cells of one sign
    packed: np.ndarray  # int32 (2*size,), see ``count_below``; negative floats last


def _edges(shift: int, first: int, count: int) -> np.ndarray:
    leading = first + np.arange(count + 1, dtype=np.int64)
    return (leading << shift).astype(np.int32).view(np.float32)


@functools.cache
def _cells(table: bytes, ties: bool) -> _Cells:
    thresholds = np.frombuffer(table, np.float32)
    magnitudes = np.abs(thresholds[thresholds != 0])
    for bits in range(_MOST_MANTISSA_BITS):
        shift = 23 - bits
        keys = magnitudes.view(np.int32) >> shift
        # A cell more at both ends, without thresholds, for all that is smaller and larger.
        first, count = int(keys.min()) - 1, int(keys.max() - keys.min()) + 3
        edges = _edges(shift, first, count)
        up = np.searchsorted(thresholds, edges, "left")  # thresholds below an edge
        down = np.searchsorted(thresholds, -edges, "right")  # thresholds up to minus an edge
        if max(np.diff(up).max(), -np.diff(down).min()) <= 1:
            break
    else:
        raise ValueError("two entries of the table are too close to be told apart")
    whole = 1 << shift
    low = np.append(thresholds, np.float32(0.0)).view(np.int32) & (whole - 1)
    reach = np.where(np.diff(up) == 1, whole - 1 + ties - low[up[:-1]], 0)
    packed = up[:-1] * whole + reach
    # Cells of the negative floats in (-edge[i+1], -edge[i]]: magnitudes count the other way.
    left = np.where(-np.diff(down) == 1, low[down[1:]] - 1 + ties, -1)
    mirrored = (down[1:] + 1) * whole + left
    return _Cells(shift, first, count, np.concatenate([packed, mirrored]).astype(np.int32))


def count_below(x: jax.Array, thresholds: np.ndarray, *, ties: bool = False) -> jax.Array:
    """Returns how many thresholds are below each number, exactly as a binary search counts them.

    The leading bits of a number choose a cell with at most one threshold, and one lookup gives a
    sum ``thresholds below the cell * 2**shift + what the low bits of a number lack to exceed the
    threshold``: added to the low bits, it carries into the count. A search would be a loop.

    Args:
      x: float32; NaN counts as anything.
      thresholds: float32, strictly increasing; 0 only if ties count.
      ties: count a threshold that is equal, too.

    Returns:
      int32 counts of the shape of ``x``.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> from optkit.codecs.locate import count_below
      >>> count_below(jnp.array([-2.0, 0.25, 0.5]), np.float32([-1.0, 0.25, 0.4])).tolist()
      [0, 1, 3]
    """
    cells = _cells(np.asarray(thresholds, np.float32).tobytes(), ties)
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    least = jnp.int32(cells.first << cells.shift)
    most = jnp.int32(((cells.first + cells.size) << cells.shift) - 1)
    both = bool(thresholds[0] < 0)
    # Without negative thresholds a sign bit is left to lead into the first cell.
    size = jax.lax.clamp(least, bits & 0x7FFFFFFF if both else bits, most)
    cell, low = (size >> cells.shift) - cells.first, size & ((1 << cells.shift) - 1)
    packed = cells.packed
    if both:
        sign = bits >> 31  # -1 for negative numbers
        cell, low = cell + (sign & cells.size), (low ^ sign) - sign
    else:
        packed = packed[: cells.size]
    # 32-bit indices known to be inside: that compiles to vectors.
    return (jnp.asarray(packed).at[cell].get(mode="promise_in_bounds") + low) >> cells.shift
