"""Arrays that hold the active entries of a leaf only, and the state that is kept for them."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.masks.policy import Active
from optkit.tree import PyTree, map_groups, match_state
from optkit.tree.paths import path_string
from optkit.tree.sharding import mesh_of, place_stack, spec_of


def whole(x: jax.Array) -> jax.Array:
    """Returns an array of a mesh with all of it on each device."""
    mesh = mesh_of(x)
    return x if mesh is None else place_stack(x[None], mesh, PartitionSpec())[0]


@functools.partial(jax.jit, static_argnames="count")
def _places_of(mask: jax.Array, count: int) -> jax.Array:
    def one(mask: jax.Array) -> jax.Array:
        (found,) = jnp.nonzero(mask.reshape(-1), size=count, fill_value=mask.size)
        # Places that are left over lie behind the end: nothing is read or written there.
        spare = mask.size + jnp.arange(count)
        return jnp.where(found < mask.size, found, spare).astype(jnp.int32)

    return jnp.vectorize(one, signature="(m,n)->(k)")(mask)


def indices(masks: Sequence[jax.Array], counts: Sequence[int]) -> list[jax.Array]:
    """Returns the places of the True entries of each mask, (count,) int32, in increasing order.

    Of more than count the first; of fewer, the places behind them are beyond the mask's end.
    """
    out: list[jax.Array] = [*masks]
    for count in set(counts):
        own = [i for i, other in enumerate(counts) if other == count]
        # From here a mask is a leaf of its own shape; any matrix of its entries will do.
        flat = [whole(masks[i]).reshape(1, -1) for i in own]
        function = functools.partial(_places_of, count=count)
        for i, found in zip(own, map_groups(function, flat, move=False), strict=True):
            out[i] = found
    return out


@dataclass(frozen=True)
class Slot:
    """How the active entries of one leaf are stored.

    Attributes:
      shape: the leaf's shape.
      active: how it is masked, with a count.
    """

    shape: tuple[int, ...]
    active: Active

    @property
    def count(self) -> int:
        """How many entries of the mask are active."""
        assert self.active.count is not None
        return self.active.count

    @property
    def chosen(self) -> tuple[int, ...]:
        """Axes that the mask chooses from."""
        sizes = zip(self.shape, self.active.shape, strict=True)
        axes = tuple(axis for axis, (n, m) in enumerate(sizes) if n == m and n > 1)
        return axes or tuple(range(len(self.shape)))[-1:]

    @property
    def axis(self) -> int:
        """Where the active entries lie in the stored array."""
        return self.chosen[-1] if self.chosen else 0

    @property
    def stored(self) -> tuple[int, ...]:
        """Shape of the stored array: the leaf's rank, so that a role found by rank stays."""
        one = (1 if axis in self.chosen else n for axis, n in enumerate(self.shape))
        out = list(one)
        if out:
            out[self.axis] = self.count
        return tuple(out)

    def _order(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Axes with the chosen ones first, and the place of each axis of the stored array."""
        others = tuple(axis for axis in range(len(self.shape)) if axis not in self.chosen)
        kept = [self.axis, *others]
        return (*self.chosen, *others), tuple(kept.index(axis) for axis in sorted(kept))

    def _flat(self, x: jax.Array) -> jax.Array:
        """Returns ``(entries of the mask, *axes that are taken whole)``."""
        order, _ = self._order()
        size = math.prod(self.shape[axis] for axis in self.chosen)
        moved = jnp.transpose(x, order) if order != tuple(range(len(order))) else x
        return moved.reshape(size, *(self.shape[axis] for axis in order[len(self.chosen) :]))

    def take(self, leaf: jax.Array, index: jax.Array) -> jax.Array:
        """Returns the active entries of a leaf."""
        if not self.shape:
            return leaf
        _, back = self._order()
        return jnp.transpose(
            self._flat(whole(leaf)).at[index].get(mode="fill", fill_value=0), back
        ).reshape(self.stored)

    def put(self, stored: jax.Array, index: jax.Array, like: jax.Array) -> jax.Array:
        """Returns a leaf of zeros with the stored entries in their places."""
        if not self.shape:
            return stored
        order, back = self._order()
        inverse = [back.index(axis) for axis in range(len(back))]
        kept = sorted({self.axis, *(axis for axis in order if axis not in self.chosen)})
        compact = [self.stored[axis] for axis in kept]
        rows = jnp.transpose(stored.reshape(compact), inverse)
        flat = jnp.zeros((math.prod(self.active.shape), *rows.shape[1:]), stored.dtype)
        flat = flat.at[index].set(rows, mode="drop", unique_indices=True, indices_are_sorted=True)
        full = flat.reshape([self.shape[axis] for axis in order])
        full = jnp.transpose(full, [order.index(axis) for axis in range(len(order))])
        mesh, spec = mesh_of(like), spec_of(like)
        return full if mesh is None or spec is None else place_stack(full[None], mesh, spec)[0]

    def rows(self, stored: jax.Array) -> jax.Array:
        """Returns a stored array as ``(others, active entries)``."""
        return jnp.moveaxis(stored, self.axis, -1).reshape(-1, self.count)

    def unrows(self, rows: jax.Array) -> jax.Array:
        """Undoes ``rows``."""
        others = [n for axis, n in enumerate(self.stored) if axis != self.axis]
        return jnp.moveaxis(rows.reshape(*others, self.count), -1, self.axis)

    def placeholder(self) -> jax.Array:
        """Returns indices to begin with."""
        return jnp.arange(self.count, dtype=jnp.int32)


def carry_over(
    state: PyTree,
    fresh: PyTree,
    stored: PyTree,
    slots: dict[str, Slot],
    before: dict[str, jax.Array],
    after: dict[str, jax.Array],
) -> PyTree:
    """Returns a state for new indices: entries that stay keep theirs, others begin anew.

    Args:
      state: the inner state for the old indices.
      fresh: the inner state as init makes it for the new ones.
      stored: the parameters that the inner transformation sees.
      slots: by path, leaves that are stored in part.
      before: their old indices.
      after: their new indices.

    Raises:
      ValueError: a statistic of a partly stored leaf has another shape.
    """
    matches = match_state(state, stored)
    leaves: list[Any] = [match.leaf for match in matches]
    begun = jax.tree.leaves(fresh)
    moving: list[tuple[int, str, Slot]] = []
    for at, match in enumerate(matches):
        slot = None if match.param_path is None else slots.get(match.param_path)
        if slot is None or match.param_path is None or jnp.ndim(match.leaf) == 0:
            continue
        if match.leaf.shape != slot.stored:
            raise ValueError(
                f"state='drop' cannot move {path_string(match.key_path)!r} of shape "
                f"{match.leaf.shape} to other entries of leaf {match.param_path!r}: it is no "
                "number per entry; use state='hold', or a policy that chooses once"
            )
        moving.append((at, match.param_path, slot))
    if not moving:
        return state
    given = zip(moving, (leaves[at] for at, _, _ in moving), strict=True)
    held = [slot.rows(leaf) for (_, _, slot), leaf in given]
    new = [slot.rows(begun[at]) for at, _, slot in moving]
    old, wanted = ([values[path] for _, path, _ in moving] for values in (before, after))
    moved = map_groups(_move, held, new, old, wanted, move=False)
    for (at, _, slot), rows in zip(moving, moved, strict=True):
        leaves[at] = slot.unrows(rows)
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


@functools.partial(jnp.vectorize, signature="(m,n),(m,n),(n),(n)->(m,n)")
def _move(held: jax.Array, new: jax.Array, old: jax.Array, wanted: jax.Array) -> jax.Array:
    """State at other places: what was held, or the new one."""
    place = jnp.minimum(jnp.searchsorted(old, wanted), old.size - 1)
    stays = old[place] == wanted
    return jnp.where(stays[None], held[:, place], new)


__all__ = ["Slot", "carry_over", "indices", "whole"]
