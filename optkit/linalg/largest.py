"""Exactly k of many entries, the largest: a cutoff found by counting, without a sort."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["MOST", "largest_in", "largest_of", "largest_of_each"]

# Counts of several arrays are added up in int32.
MOST = 2**30
_BITS = 32


def _keys(score: jax.Array, eligible: jax.Array | None, smallest: bool) -> jax.Array:
    """Integers in the order of the scores; 0 for what cannot be chosen."""
    bits = lax.bitcast_convert_type(jnp.abs(score).astype(jnp.float32), jnp.uint32)
    # Of numbers without a sign the bits have the order of the values; NaN comes after infinity.
    keys = (jnp.uint32(2**31 - 1) - bits if smallest else bits) + jnp.uint32(1)
    return keys if eligible is None else jnp.where(eligible, keys, jnp.uint32(0))


def _total(masks: Sequence[jax.Array], most: jax.Array) -> jax.Array:
    """How many are True in all, or ``most`` if they are more."""
    total = jnp.zeros((), jnp.int32)
    for mask in masks:
        total = jnp.minimum(total + jnp.minimum(jnp.sum(mask, dtype=jnp.int32), most), most)
    return total


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The number of each entry in row-major order, uint32."""
    place, step = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = place + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step)
        step *= shape[axis]
    return place


def _first(masks: Sequence[jax.Array], counts: jax.Array) -> list[jax.Array]:
    """The first so many True entries of each mask, in row-major order."""
    places = [_places(mask.shape) for mask in masks]

    def narrow(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = carry
        middle = low + (high - low) // 2
        below = [
            jnp.sum(mask & (place < middle[i]), dtype=jnp.int32)
            for i, (mask, place) in enumerate(zip(masks, places, strict=True))
        ]
        enough = jnp.stack(below) >= counts
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # Equal scores at a cutoff are rare: without them there is nothing to search.
    whole = jnp.stack([jnp.sum(mask, dtype=jnp.int32) for mask in masks]) <= counts
    end = jnp.asarray([mask.size for mask in masks], jnp.uint32)
    start = jnp.where(whole, end, jnp.uint32(0))
    low, _ = lax.while_loop(lambda carry: jnp.any(carry[0] < carry[1]), narrow, (start, end))
    return [
        mask & (place < low[i]) for i, (mask, place) in enumerate(zip(masks, places, strict=True))
    ]


def _raised(cutoff: jax.Array, index: jax.Array) -> jax.Array:
    """A cutoff with its next bit set."""
    return cutoff | (jnp.uint32(1) << (jnp.uint32(_BITS - 1) - jnp.asarray(index, jnp.uint32)))


def largest_of(
    scores: Sequence[jax.Array],
    count: int | jax.Array,
    eligible: Sequence[jax.Array] | None = None,
    *,
    smallest: bool = False,
) -> list[jax.Array]:
    """Tells which entries of several arrays are the ``count`` of largest magnitude in all of them.

    1. the cutoff is the largest number that at least ``count`` magnitudes reach, found bit by bit
       by counting: 32 sums over arrays that stay where they are, whatever their sharding;
    2. entries above it are chosen, and of those that equal it the first ones, by the order of the
       arrays and of the entries in them.

    Exactly ``count`` entries are chosen, or all that are eligible if they are fewer.

    Args:
      scores: arrays of any shapes; magnitudes are compared in float32, NaN counts as larger than
        any number.
      count: how many, at most 2**30; an int32 scalar may differ from call to call.
      eligible: bool arrays of the same shapes, what may be chosen; None for everything.
      smallest: choose the smallest magnitudes.

    Returns:
      A bool array for each array.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.linalg import largest_of
      >>> [x.tolist() for x in largest_of([jnp.array([3.0, -5.0, 1.0]), jnp.array([3.0])], 2)]
      [[True, True, False], [False]]
    """
    keys = _all_keys(scores, eligible, smallest)
    if not keys:
        return []
    wanted = jnp.minimum(jnp.asarray(count, jnp.int32), MOST)

    def raise_bit(index: jax.Array, cutoff: jax.Array) -> jax.Array:
        higher = _raised(cutoff, index)
        reached = _total([key >= higher for key in keys], wanted) >= wanted
        return jnp.where(reached, higher, cutoff)

    cutoff = lax.fori_loop(0, _BITS, raise_bit, jnp.zeros((), jnp.uint32))
    above = [key > cutoff for key in keys]
    ties = [(key == cutoff) & (key > 0) for key in keys]
    left, allowed = wanted - _total(above, wanted), []
    for tie in ties:
        allowed.append(jnp.minimum(jnp.sum(tie, dtype=jnp.int32), left))
        left = left - allowed[-1]
    chosen = _first(ties, jnp.stack(allowed))
    return [over | some for over, some in zip(above, chosen, strict=True)]


def largest_of_each(
    scores: Sequence[jax.Array],
    counts: Sequence[int | jax.Array],
    eligible: Sequence[jax.Array] | None = None,
    *,
    smallest: bool = False,
) -> list[jax.Array]:
    """Tells which entries of each of several arrays are the so many of largest magnitude in it.

    What ``largest_of`` does for all arrays together, for each by itself, in one loop.

    Args:
      scores: arrays of any shapes.
      counts: how many of each, at most 2**30; int32 scalars may differ from call to call.
      eligible: bool arrays of the same shapes, what may be chosen; None for everything.
      smallest: choose the smallest magnitudes.

    Returns:
      A bool array for each array.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.linalg import largest_of_each
      >>> x = jnp.array([3.0, -5.0, 1.0])
      >>> [x.tolist() for x in largest_of_each([x, x], [1, 2])]
      [[False, True, False], [True, True, False]]
    """
    keys = _all_keys(scores, eligible, smallest)
    if not keys:
        return []
    wanted = jnp.stack([jnp.asarray(count, jnp.int32) for count in counts])

    def raise_bit(index: jax.Array, cutoffs: jax.Array) -> jax.Array:
        higher = _raised(cutoffs, index)
        found = [jnp.sum(key >= higher[i], dtype=jnp.int32) for i, key in enumerate(keys)]
        return jnp.where(jnp.stack(found) >= wanted, higher, cutoffs)

    cutoffs = lax.fori_loop(0, _BITS, raise_bit, jnp.zeros(len(keys), jnp.uint32))
    above = [key > cutoffs[i] for i, key in enumerate(keys)]
    ties = [(key == cutoffs[i]) & (key > 0) for i, key in enumerate(keys)]
    left = wanted - jnp.stack([jnp.sum(over, dtype=jnp.int32) for over in above])
    return [over | some for over, some in zip(above, _first(ties, left), strict=True)]


def largest_in(scores: jax.Array, count: int, *, smallest: bool = False) -> jax.Array:
    """Tells which entries along the last axis are the ``count`` of largest magnitude.

    Args:
      scores: (..., n); magnitudes are compared in float32, NaN counts as larger than any number.
      count: how many of each row; of equal ones the first are chosen.
      smallest: choose the smallest magnitudes.

    Returns:
      A bool array, (..., n).

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.linalg import largest_in
      >>> largest_in(jnp.array([[3.0, -5.0, 1.0], [0.0, 0.0, 0.0]]), 1).tolist()
      [[False, True, False], [True, False, False]]
    """
    keys = _keys(scores, None, smallest)

    def raise_bit(index: jax.Array, cutoff: jax.Array) -> jax.Array:
        higher = _raised(cutoff, index)
        found = jnp.sum(keys >= higher, axis=-1, keepdims=True, dtype=jnp.int32)
        return jnp.where(found >= count, higher, cutoff)

    cutoff = lax.fori_loop(0, _BITS, raise_bit, jnp.zeros_like(keys[..., :1]))
    above, ties = keys > cutoff, keys == cutoff
    left = count - jnp.sum(above, axis=-1, keepdims=True, dtype=jnp.int32)
    return above | (ties & (jnp.cumsum(ties, axis=-1, dtype=jnp.int32) <= left))


def _all_keys(
    scores: Sequence[jax.Array], eligible: Sequence[jax.Array] | None, smallest: bool
) -> list[jax.Array]:
    may = [None] * len(scores) if eligible is None else list(eligible)
    return [_keys(x, free, smallest) for x, free in zip(scores, may, strict=True)]
