"""Which factors PSGD keeps for the leaves of a tree, and where they lie in its state."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.whitening import first_factors
from optkit.transforms.rotated_units import Factors, sizes_of
from optkit.transforms.tensor_groups import multiple
from optkit.tree import AxisLayout, Dims, PyTree, RuleLike, accumulator_dtype, upcast
from optkit.tree.sharding import place_factor

MemorySave = Literal["one_diag", "all_diag"]


def diagonal_axes(
    sizes: Sequence[int], largest: int, least_rank: int, save: MemorySave | None
) -> tuple[bool, ...]:
    """Which axes keep a diagonal only."""
    rank = len(sizes)
    longest = max(range(rank), key=lambda i: (sizes[i], i))
    return tuple(
        size == 1
        or size > largest
        or rank < least_rank
        or save == "all_diag"
        or (save == "one_diag" and i == longest)
        for i, size in enumerate(sizes)
    )


class PsgdFactors(NamedTuple):
    """How the leaves of a tree are read, and which axes keep a diagonal only."""

    layout: AxisLayout
    flats: list[tuple[bool, ...]]

    @classmethod
    def of(
        cls, tree: PyTree, *, dims: Dims, roles: Sequence[RuleLike], whole: bool, flat: Any
    ) -> "PsgdFactors":
        """Reads a tree."""
        layout = AxisLayout(tree, dims, roles, whole=whole)
        return cls(layout, [flat(sizes_of(view)) for view in layout.views])

    def alone(self, index: int) -> bool:
        """Whether a leaf has one number an entry."""
        return self.flats[index] == (True,)

    def first(self, params: PyTree, scale: float, dtype: Any) -> Factors:
        """Multiples of the identity."""
        out: Factors = []
        leaves = zip(self.layout.views, self.layout.leaves(params), self.flats, strict=True)
        for index, (view, leaf, flat) in enumerate(leaves):
            values = first_factors(sizes_of(view), flat, scale, accumulator_dtype(leaf))
            if self.alone(index):
                own = jnp.full_like(leaf, scale, dtype=accumulator_dtype(leaf, dtype))
                out.append((view.split(own),))
            else:
                batch = view.batch if view.axes else view.shape[:-1]
                out.append(tuple(multiple(leaf, batch, value) for value in values))
        return out

    def pack(self, factors: Factors) -> tuple[tuple[PyTree, ...], PyTree]:
        """Those of tensors as one tree an axis, and those of vectors as one tree."""
        views = enumerate(self.layout.views)
        entries = [view.merge(factors[i][0]) if self.alone(i) else None for i, view in views]
        others = [() if self.alone(i) else own for i, own in enumerate(factors)]
        return self.layout.pack(others), self.layout.structure.unflatten(entries)

    def unpack(self, kronecker: tuple[PyTree, ...], entries: PyTree) -> Factors:
        """Undoes ``pack``."""
        views = self.layout.views
        counts = [0 if self.alone(i) else len(own) for i, own in enumerate(self.flats)]
        others = self.layout.unpack(kronecker, counts)
        alone = self.layout.leaves(entries)
        return [
            (upcast(views[i].split(alone[i])),) if self.alone(i) else own
            for i, own in enumerate(others)
        ]

    def placed(self, index: int, factor: jax.Array, tensor: jax.Array) -> jax.Array:
        """A new factor where the old one lay."""
        return factor if self.alone(index) else place_factor(factor, tensor)
