"""A device's block of a whole array, and what devices exchange to lay it otherwise."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

# For each dimension the mesh axes that it is split over, the major one first; () where it is whole.
Part: TypeAlias = tuple[str, ...]
Parts: TypeAlias = tuple[Part, ...]
Kind: TypeAlias = Literal["sum", "max", "min"]

_KIND = "manual_axis_type"  # of the type of an array, in versions of JAX that keep track


def varying(x: Any) -> frozenset[str]:
    """Returns the manual mesh axes over which an array varies.

    Args:
      x: an array or its type.

    Returns:
      Names; none outside of ``shard_map``, and where nothing keeps track of them.
    """
    kind = getattr(x if isinstance(x, jax.core.ShapedArray) else jax.typeof(x), _KIND, None)
    return frozenset(getattr(kind, "varying", ()))


def manual_axes() -> frozenset[str]:
    """Returns the mesh axes of the ``shard_map`` that this is traced in.

    Returns:
      Names; none outside.
    """
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def as_varying(x: jax.Array, names: Iterable[str]) -> jax.Array:
    """Says of an array that it is to vary over axes, too."""
    missing = tuple(sorted(set(names) - varying(x)))
    return lax.pcast(x, missing, to="varying") if missing else x


@dataclasses.dataclass(frozen=True)
class Block:
    """A device's part of a whole array.

    Attributes:
      value: the part. A whole dimension that all entries are equal along may have size 1 here.
      parts: how each dimension is split.
      shape: the whole array's.
    """

    value: jax.Array
    parts: Parts
    shape: tuple[int, ...]

    def is_once(self, axis: int) -> bool:
        """Whether a dimension is held once for all of its entries."""
        return self.value.shape[axis] == 1 != self.shape[axis] and not self.parts[axis]

    @property
    def is_split(self) -> bool:
        """Whether devices hold different parts."""
        return any(self.parts)


class Devices:
    """The devices of a manual region: how many along each axis, and their exchanges.

    Args:
      sizes: devices along each axis.
      beside: axes along which arrays vary without being split, such as those of workers.
    """

    def __init__(self, sizes: Mapping[str, int], beside: Iterable[str] = ()) -> None:
        self.sizes, self.beside = dict(sizes), frozenset(beside)

    def count(self, part: Part) -> int:
        """How many blocks a dimension is split into."""
        return math.prod(self.sizes[name] for name in part)

    def gather(self, x: jax.Array, axis: int, part: Part) -> jax.Array:
        """Makes a dimension whole."""
        # Where types keep track of what varies, they have to be told that this does not.
        to = "invarying" if varying(x) else "varying"
        return lax.all_gather(x, part, axis=axis, tiled=True, to=to)

    def own(self, x: jax.Array, axis: int, part: Part) -> jax.Array:
        """Cuts this device's block out of a whole dimension."""
        size = x.shape[axis] // self.count(part)
        x = as_varying(x, part) if self._tracked(part) else x
        return lax.dynamic_slice_in_dim(x, lax.axis_index(part) * size, size, axis)

    def total(self, x: jax.Array, names: Part, kind: Kind) -> jax.Array:
        """Reduces over devices."""
        reduce = {"sum": lax.psum, "max": lax.pmax, "min": lax.pmin}[kind]
        return reduce(x, names)

    def _tracked(self, part: Part) -> bool:
        return bool(varying(lax.axis_index(part)))

    # What rules ask for.

    def whole(self, block: Block, axes: Iterable[int]) -> Block:
        """Makes some dimensions whole, with all of their entries."""
        value, parts = block.value, list(block.parts)
        for axis in axes:
            if parts[axis]:
                value, parts[axis] = self.gather(value, axis, parts[axis]), ()
            elif block.is_once(axis):
                value = _repeat(value, axis, block.shape[axis])
        return Block(value, tuple(parts), block.shape)

    def laid(self, block: Block, parts: Parts, once: bool = False) -> Block:
        """Lays an array by parts; with ``once``, dimensions that are held once stay so."""
        moved = [axis for axis, part in enumerate(block.parts) if part and part != parts[axis]]
        value = self.whole(block, moved).value
        for axis, part in enumerate(parts):
            if block.is_once(axis):
                size = block.shape[axis] // self.count(part)
                value = value if once else _repeat(value, axis, size)
            elif part and part != block.parts[axis]:
                value = self.own(value, axis, part)
        if not once:
            # All that is split varies, also what was made of a constant.
            value = self.marked(value, parts)
        return Block(value, parts, block.shape)

    def marked(self, value: jax.Array, parts: Parts) -> jax.Array:
        """Says of a value that it varies over what it is split over."""
        names = {name for part in parts for name in part}
        if not names or not self._tracked(tuple(sorted(names))):
            return value
        return as_varying(value, names)

    def common(self, blocks: Sequence[Block]) -> Parts:
        """How arrays of one shape are best laid alike: each dimension as the first that is split.

        An axis of the mesh splits one dimension only.
        """
        parts: list[Part] = [()] * len(blocks[0].shape)
        used: set[str] = set()
        for block in sorted(blocks, key=lambda b: -sum(map(len, b.parts))):
            for axis, part in enumerate(block.parts):
                if part and not parts[axis] and used.isdisjoint(part):
                    parts[axis] = part
                    used.update(part)
        return tuple(parts)


def replicated(x: Any) -> Block:
    """A value that is equal on all devices."""
    shape = jnp.shape(x)
    return Block(x, ((),) * len(shape), shape)


def _repeat(x: jax.Array, axis: int, size: int) -> jax.Array:
    return jnp.broadcast_to(x, (*x.shape[:axis], size, *x.shape[axis + 1 :]))
