"""Exactly k of many entries, the largest: a cutoff found by counting, without a sort."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

__all__ = ["MOST", "largest_in", "largest_of", "largest_of_each"]

# Counts of several arrays are added up in int32.
MOST = 2**30 - 1
_BITS = 32


def _keys(score: jax.Array, eligible: jax.Array | None, smallest: bool) -> jax.Array:
    """Integers in the order of the scores; 0 for what cannot be chosen."""
    bits = lax.bitcast_convert_type(jnp.abs(score).astype(jnp.float32), jnp.uint32)
    # Of numbers without a sign the bits have the order of the values; NaN comes after infinity.
    keys = (jnp.uint32(2**31 - 1) - bits if smallest else bits) + jnp.uint32(1)
    return keys if eligible is None else jnp.where(eligible, keys, jnp.uint32(0))


def _broadcast(values: jax.Array, like: jax.Array) -> jax.Array:
    """One number for each array of a stack, against the stack."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def _sums(masks: jax.Array) -> jax.Array:
    """How many are True in each array of a stack."""
    return jnp.sum(masks, axis=tuple(range(1, masks.ndim)), dtype=jnp.int32)


def _total(masks: Sequence[jax.Array], most: jax.Array) -> jax.Array:
    """How many are True in all stacks, or ``most`` if they are more."""
    total = jnp.zeros((), jnp.int32)
    for mask in masks:
        # A scan of a few numbers, so that no sum is above twice what is asked for.
        counts = jnp.minimum(_sums(mask), most)
        add = lambda held, count: (jnp.minimum(held + count, most), None)  # noqa: E731
        total, _ = lax.scan(add, total, counts)
    return total


class Stacks:
    """Arrays of one shape and partition together: many leaves are a few loops once compiled.

    Args:
      arrays: the arrays.
      labels: what else must be equal, one value an array.
    """

    def __init__(self, arrays: Sequence[jax.Array], labels: Sequence[Any] | None = None) -> None:
        found: dict[Any, list[int]] = {}
        for index, x in enumerate(arrays):
            sharding = getattr(jax.typeof(x), "sharding", None)
            label = None if labels is None else labels[index]
            key = (x.shape, x.dtype, getattr(sharding, "spec", None), label)
            found.setdefault(key, []).append(index)
        self.members = list(found.values())

    def stack(self, arrays: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns ``(arrays, *shape)`` for each shape."""
        return [jnp.stack([arrays[i] for i in members]) for members in self.members]

    def split(self, stacks: Sequence[jax.Array]) -> list[jax.Array]:
        """Undoes ``stack``."""
        out = {
            index: stack[place]
            for members, stack in zip(self.members, stacks, strict=True)
            for place, index in enumerate(members)
        }
        return [out[index] for index in range(len(out))]

    def numbers(self, values: jax.Array) -> list[jax.Array]:
        """Returns the numbers of the arrays in each stack."""
        return [values[jnp.asarray(members)] for members in self.members]

    def joined(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Undoes ``numbers``."""
        order = [index for members in self.members for index in members]
        places = [order.index(index) for index in range(len(order))]
        return jnp.concatenate(parts)[jnp.asarray(places)]


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The number of each entry in row-major order, uint32."""
    place, step = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        place = place + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(step)
        step *= shape[axis]
    return place


def _first(masks: Sequence[jax.Array], counts: Sequence[jax.Array]) -> list[jax.Array]:
    """The first so many True entries of each array of each stack, in row-major order."""
    places = [_places(mask.shape[1:])[None] for mask in masks]
    sizes = [math.prod(mask.shape[1:]) for mask in masks]

    def narrow(ends: list[tuple[jax.Array, jax.Array]]) -> list[tuple[jax.Array, jax.Array]]:
        out = []
        for mask, place, count, (low, high) in zip(masks, places, counts, ends, strict=True):
            middle = low + (high - low) // 2
            enough = _sums(mask & (place < _broadcast(middle, mask))) >= count
            out.append((jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)))
        return out

    # Equal scores at a cutoff are rare: without them there is nothing to search.
    ends = []
    for mask, size, count in zip(masks, sizes, counts, strict=True):
        end = jnp.full_like(count, size, dtype=jnp.uint32)
        ends.append((jnp.where(_sums(mask) <= count, end, jnp.uint32(0)), end))
    open_ = lambda ends: jnp.any(jnp.stack([jnp.any(low < high) for low, high in ends]))  # noqa: E731
    ends = lax.while_loop(open_, narrow, ends)
    return [
        mask & (place < _broadcast(low, mask))
        for mask, place, (low, _) in zip(masks, places, ends, strict=True)
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
      count: how many, fewer than 2**30; an int32 scalar may differ from call to call.
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
    if not scores:
        return []
    stacks, keys = _all_keys(scores, eligible, smallest)
    wanted = jnp.minimum(jnp.asarray(count, jnp.int32), MOST)

    def raise_bit(index: jax.Array, cutoff: jax.Array) -> jax.Array:
        higher = _raised(cutoff, index)
        reached = _total([key >= higher for key in keys], wanted) >= wanted
        return jnp.where(reached, higher, cutoff)

    cutoff = lax.fori_loop(0, _BITS, raise_bit, jnp.zeros((), jnp.uint32))
    above = [key > cutoff for key in keys]
    ties = [(key == cutoff) & (key > 0) for key in keys]
    left = wanted - _total(above, wanted)
    # Ties are given out in the order of the arrays.
    found = jnp.minimum(stacks.joined([_sums(tie) for tie in ties]), left)

    def give(left: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
        return left - jnp.minimum(left, count), jnp.minimum(left, count)

    _, allowed = lax.scan(give, left, found)
    chosen = _first(ties, stacks.numbers(allowed))
    return stacks.split([over | some for over, some in zip(above, chosen, strict=True)])


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
      counts: how many of each, fewer than 2**30; int32 scalars may differ from call to call.
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
    if not scores:
        return []
    stacks, keys = _all_keys(scores, eligible, smallest)
    wanted = stacks.numbers(jnp.stack([jnp.asarray(count, jnp.int32) for count in counts]))

    def raise_bit(index: jax.Array, cutoffs: list[jax.Array]) -> list[jax.Array]:
        out = []
        for key, count, cutoff in zip(keys, wanted, cutoffs, strict=True):
            higher = _raised(cutoff, index)
            reached = _sums(key >= _broadcast(higher, key)) >= count
            out.append(jnp.where(reached, higher, cutoff))
        return out

    begin = [jnp.zeros_like(count, dtype=jnp.uint32) for count in wanted]
    cutoffs = lax.fori_loop(0, _BITS, raise_bit, begin)
    ends = [_broadcast(cutoff, key) for cutoff, key in zip(cutoffs, keys, strict=True)]
    above = [key > end for key, end in zip(keys, ends, strict=True)]
    ties = [(key == end) & (key > 0) for key, end in zip(keys, ends, strict=True)]
    left = [count - _sums(over) for count, over in zip(wanted, above, strict=True)]
    chosen = _first(ties, left)
    return stacks.split([over | some for over, some in zip(above, chosen, strict=True)])


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
) -> tuple[Stacks, list[jax.Array]]:
    may = [None] * len(scores) if eligible is None else list(eligible)
    keys = [_keys(x, free, smallest) for x, free in zip(scores, may, strict=True)]
    stacks = Stacks(keys)
    return stacks, stacks.stack(keys)
