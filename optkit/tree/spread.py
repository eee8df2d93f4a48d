"""Where a leaf lies on a mesh, and how its matrices come to lie whole on single devices."""

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from optkit.tree.costs import MatrixSharding, axes_of
from optkit.tree.sharding import SLOW_AXES, mesh_of, place, spec_of

_FREE = PartitionSpec.UNCONSTRAINED


class Spread(NamedTuple):
    """Where a leaf lies, and the mesh axes that its matrices are spread over.

    Attributes:
      mesh: the leaf's mesh.
      axes: names of the axes.
      spec: partition of the leaf; None where only the compiler knows it.
      explicit: whether what is put somewhere has to say so by its type.
    """

    mesh: Any
    axes: tuple[str, ...]
    spec: PartitionSpec | None
    explicit: bool

    @property
    def devices(self) -> int:
        """Devices that share the work."""
        return math.prod(self.mesh.shape[name] for name in self.axes)

    def part(self, axis: int) -> tuple[str, ...]:
        """Names of the spread axes that cut an axis of the leaf, counted from its end."""
        named = (None, None, *(self.spec or ()))[axis]
        return tuple(name for name in axes_of(PartitionSpec(named)) if name in self.axes)

    def shard(self, stack: jax.Array, axis: int) -> jax.Array:
        """Returns ``(..., m, n)`` as whole matrices, batch axis ``axis`` split over the axes.

        The axis must be a multiple of the devices. Where rows and columns are cut, they move there
        one after the other: asked for in one step, XLA's partitioner gathers everything.
        """
        halfway, names = self._steps(stack, axis)
        stack = stack if halfway is None else place(stack, self.mesh, halfway)
        return place(stack, self.mesh, _spec(stack.ndim, {axis: names}))

    def unshard(self, stack: jax.Array, axis: int, spec: PartitionSpec) -> jax.Array:
        """Returns the stack as it was; ``spec`` is that of a view without the stack axis.

        On Auto axes the compiler takes it from what the leaf is added to; that the stack axis is
        whole must be said, or slicing a leaf out of it is an exchange of its own.
        """
        halfway, names = self._steps(stack, axis)
        # Or XLA moves the terms of the function's last sum, each by itself, before it adds them.
        stack = place(stack, self.mesh, _spec(stack.ndim, {axis: names}))
        stack = stack if halfway is None else place(stack, self.mesh, halfway)
        if not self.explicit:
            spec = PartitionSpec(*(_FREE,) * (stack.ndim - 1))
        return place(stack, self.mesh, PartitionSpec(None, *spec))

    def _steps(self, stack: jax.Array, axis: int) -> tuple[PartitionSpec | None, tuple[str, ...]]:
        """A stop on the way, and the order of the axes at its end."""
        if self.spec is None:
            rows, columns = self.axes[:1], self.axes[1:]
        else:
            rows, columns = self.part(-2), self.part(-1)
            rest = tuple(name for name in self.axes if name not in rows + columns)
            if not rows or not columns:
                return None, (*rest, *rows, *columns)
            columns = (*rest, *columns)
        size = math.prod(self.mesh.shape[name] for name in rows)
        if not columns or stack.ndim - 2 <= axis or stack.shape[-2] % size:
            return None, (*columns, *rows)
        halfway = _spec(stack.ndim, {axis: columns, stack.ndim - 2: rows})
        return halfway, (*columns, *rows)


def _spec(rank: int, parts: dict[int, Any]) -> PartitionSpec:
    return PartitionSpec(*(parts.get(axis) for axis in range(rank)))


def spread_of(x: jax.Array, sharding: MatrixSharding, known: PartitionSpec | None) -> Spread | None:
    """Returns where an array lies and what it is spread over; None on a single device.

    Raises:
      ValueError: the sharding names an axis that the mesh does not have.
    """
    mesh = mesh_of(x)
    if mesh is None:
        return None
    own = spec_of(x)
    spec = known if own is None else own
    names = tuple(mesh.axis_names)
    if sharding.axes is not None:
        axes = tuple(sharding.axes)
        if strange := [name for name in axes if name not in names]:
            raise ValueError(f"axes={axes}: the mesh has no axis {strange[0]!r}, only {names}")
    else:
        used = axes_of(spec)
        axes = tuple(name for name in names if name in used)
        axes = axes or tuple(name for name in names if name not in SLOW_AXES) or names
    if math.prod(mesh.shape[name] for name in axes) == 1:
        return None
    if spec is not None:
        spec = PartitionSpec(*spec, *(None,) * (x.ndim - len(spec)))
    return Spread(mesh, axes, spec, own is not None)
