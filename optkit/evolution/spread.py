"""A population spread over the devices of a mesh."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

from optkit.transforms.hyperparams import check_choice
from optkit.tree import PyTree
from optkit.tree.sharding import mesh_of, place, spec_of

Reduce = Literal["replicate", "psum", "auto"]

# Operations in the time in which a byte crosses a link: roughly those of present pods.
_FLOPS_A_BYTE = 1000


@dataclass(frozen=True)
class Spread:
    """Where the members of a population are.

    Attributes:
      mesh: the devices.
      names: the axes of the mesh that count members.
      reduce: "replicate": every device sums over all members; "psum": over its own, and the sums
        are added up; "auto" weighs computing against sending.
    """

    mesh: Mesh
    names: tuple[str, ...]
    reduce: Reduce = "replicate"

    def __post_init__(self) -> None:
        check_choice("reduce", self.reduce, ("replicate", "psum", "auto"))
        lost = [name for name in self.names if name not in self.mesh.axis_names]
        if lost or not self.names:
            raise ValueError(
                f"axis={lost or self.names} names no axis of the mesh; it has the axes "
                f"{self.mesh.axis_names}"
            )

    @property
    def devices(self) -> int:
        """How many parts the population is in."""
        return math.prod(self.mesh.shape[name] for name in self.names)

    def sums_apart(self, pairs: int, rank: int) -> bool:
        """Tells whether each device sums over its own pairs alone.

        Over all of them it does ``2*pairs*rank`` operations an entry of a matrix; sums that are
        added up cost 8 bytes an entry on the way.
        """
        if self.reduce != "auto":
            return self.reduce == "psum"
        spared = 2 * pairs * max(rank, 1) * (1 - 1 / self.devices)
        return pairs % self.devices == 0 and spared > 8 * _FLOPS_A_BYTE

    def gathered(self, function: Callable[..., jax.Array], *, mapped: Sequence[bool]) -> Any:
        """Makes ``function(index, tree, *args)`` of one device's part a function of all parts.

        Args:
          function: returns ``(n,)``, of which all devices get all.
          mapped: which of args are cut, by their leading axis.
        """

        def local(tree: PyTree, *args: Any) -> jax.Array:
            mine = function(jax.lax.axis_index(self.names), tree, *args)
            return jax.lax.all_gather(mine, self.names, tiled=True)

        cut = [False, *mapped]

        def spread(*given: Any) -> jax.Array:
            pairs = zip(given, cut, strict=True)
            placed = [jax.tree.map(partial(self._placed, cut=own), x) for x, own in pairs]
            return self._mapped(local, cut)(*placed)

        return jax.jit(spread)  # outside of a program arrays are placed by all axes of the mesh

    def added(self, function: Callable[..., PyTree]) -> Any:
        """Makes ``function(index, weights, *args)`` of one part the sum of it over all parts."""

        def local(weights: jax.Array, *args: Any) -> PyTree:
            index, size = jax.lax.axis_index(self.names), len(weights) // self.devices
            own = jax.lax.dynamic_slice_in_dim(weights, index * size, size)
            return jax.lax.psum(function(index, own, *args), self.names)

        return jax.jit(lambda *args: self._mapped(local, [False] * len(args))(*args))

    def repeated(self, function: Callable[..., PyTree]) -> Any:
        """Makes each device compute ``function(*args)`` by itself, of all the arguments.

        That is for kernels, which the compiler can't partition.

        Raises:
          ValueError: further axes of the mesh, along which the arguments may be split.
        """
        rest = {name: n for name, n in self.mesh.shape.items() if name not in self.names}
        if math.prod(rest.values()) > 1:
            raise ValueError(
                f"the kernel is called on whole leaves, and the mesh has the axes {rest} beside "
                f"those of members, {self.names}; give implementation='xla'"
            )
        return jax.jit(lambda *args: self._mapped(function, [False] * len(args))(*args))

    def _mapped(self, function: Callable[..., Any], cut: Sequence[bool]) -> Callable[..., Any]:
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(PartitionSpec(self.names) if own else PartitionSpec() for own in cut),
            out_specs=PartitionSpec(),
            axis_names=set(self.names),
            check_vma=False,  # the results are the same on all devices, by gathering or adding
        )

    def _placed(self, leaf: jax.Array, cut: bool) -> jax.Array:
        """A leaf as a part needs it, on Explicit axes; elsewhere the compiler does it.

        Whole along the axes of members; of an argument that is cut, its leading axis along them.
        """
        spec = spec_of(leaf)
        if spec is None:
            if not (cut and AxisType.Explicit in self.mesh.axis_types):
                return leaf
            # An array that was made beside the mesh.
            return place(leaf, self.mesh, PartitionSpec(self.names))
        each = [own if isinstance(own, tuple) else (own,) for own in spec]
        rest = [tuple(x for x in own if x not in (None, *self.names)) or None for own in each]
        parts = [self.names, *rest[1:]] if cut else rest
        return place(leaf, mesh_of(leaf), PartitionSpec(*parts))
