"""Arrays that hold the active entries of a leaf only, and the state that is kept for them."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.masks.policy import Active
from optkit.tree import PyTree, match_state
from optkit.tree.paths import path_string
from optkit.tree.sharding import mesh_of, place_stack, spec_of


def whole(x: jax.Array) -> jax.Array:
    """Returns an array of a mesh with all of it on each device."""
    mesh = mesh_of(x)
    return x if mesh is None else place_stack(x[None], mesh, PartitionSpec())[0]


@functools.partial(jax.jit, static_argnames="count")
def _places(mask: jax.Array, count: int) -> jax.Array:
    (found,) = jnp.nonzero(mask.reshape(-1), size=count, fill_value=0)
    return found.astype(jnp.int32)


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
        return jnp.transpose(self._flat(whole(leaf))[index], back).reshape(self.stored)

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
        flat = flat.at[index].set(rows, unique_indices=True, indices_are_sorted=True)
        full = flat.reshape([self.shape[axis] for axis in order])
        full = jnp.transpose(full, [order.index(axis) for axis in range(len(order))])
        mesh, spec = mesh_of(like), spec_of(like)
        return full if mesh is None or spec is None else place_stack(full[None], mesh, spec)[0]

    def index(self, mask: jax.Array) -> jax.Array:
        """Returns the places of the True entries of a mask, int32, in increasing order."""
        return _places(whole(mask), self.count)

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
    leaves = []
    for match, new in zip(match_state(state, stored), jax.tree.leaves(fresh), strict=True):
        path = match.param_path
        slot = None if path is None else slots.get(path)
        if slot is None or path is None or jnp.ndim(match.leaf) == 0:
            leaves.append(match.leaf)
            continue
        if match.leaf.shape != slot.stored:
            raise ValueError(
                f"state='drop' cannot move {path_string(match.key_path)!r} of shape "
                f"{match.leaf.shape} to other entries of leaf {path!r}: it is no number per entry; "
                "use state='hold', or a policy that chooses once"
            )
        old, wanted = before[path], after[path]
        place = jnp.minimum(jnp.searchsorted(old, wanted), slot.count - 1)
        stays = old[place] == wanted
        shape = [slot.count if axis == slot.axis else 1 for axis in range(len(slot.stored))]
        moved = jnp.take(match.leaf, place, axis=slot.axis)
        leaves.append(jnp.where(stays.reshape(shape), moved, new))
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


__all__ = ["Slot", "carry_over", "whole"]
