"""Which leaves of a tree are compressed as matrices, and which are left as they are."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from optkit.transforms.base import check_same_leaves
from optkit.tree import (
    Dims,
    MatrixLayout,
    MatrixView,
    PyTree,
    Role,
    RuleLike,
    dims_by_path,
    leaves_with_paths,
    rule_of,
    upcast,
    zeros_like_params,
)


class ChosenMatrices:
    """The matrices of a tree for which compression pays; trees of them have None elsewhere."""

    def __init__(
        self,
        tree: PyTree,
        dims: Dims,
        roles: Sequence[RuleLike],
        pays: Callable[[MatrixView], bool],
    ) -> None:
        """Looks at shapes, paths and roles, so that all workers and steps choose the same."""
        self.structure: Any = jax.tree.structure(tree)
        self.paths = [path for path, _ in leaves_with_paths(tree)]
        named = dims_by_path(tree, dims)
        self.leaves: dict[str, Any] = {}
        numbers: dict[str, Any] = {}
        for path, leaf in leaves_with_paths(tree):
            role = rule_of(path, leaf, roles).role
            own = dims if named is None else {path: named[path]}
            matrix = (
                role not in (Role.BIAS, Role.NORM) if named is None else named[path] is not None
            )
            if not matrix or np.ndim(leaf) < 2:
                continue
            if all(map(pays, MatrixLayout({path: leaf}, own, roles).views)):
                self.leaves[path] = leaf
                numbers[path] = None if named is None else named[path]
        self.layout = MatrixLayout(self.leaves, dims if named is None else numbers, roles)
        self.parts = list(zip(self.layout.paths, self.layout.views, strict=True))

    def number_in_leaf(self, index: int) -> int:
        """Which of the parts of its leaf a part is."""
        return index - self.layout.paths.index(self.layout.paths[index])

    def tree(self, by_path: dict[str, Any], rest: dict[str, Any] | None = None) -> PyTree:
        """Puts values of the chosen leaves where those leaves are, and others elsewhere."""
        values = {**(rest or {}), **by_path}
        return jax.tree.unflatten(self.structure, [values.get(path) for path in self.paths])

    def rest(self, tree: PyTree) -> dict[str, jax.Array]:
        """Returns the leaves that are not chosen."""
        return {p: leaf for p, leaf in leaves_with_paths(tree) if p not in self.leaves}

    def zeros(self) -> PyTree:
        """Returns zeros for the chosen leaves, in float32 or better."""
        return self.tree(zeros_like_params(self.leaves))

    def held(self, tree: PyTree) -> dict[str, jax.Array]:
        """Returns the leaves of a state by path: undoes ``tree``; others raise ValueError."""
        found = dict(leaves_with_paths(tree))
        check_same_leaves(self.leaves, found, "state", shapes=True)
        return found

    def packed(self, values: Sequence[Any]) -> PyTree:
        """Returns one value a matrix part as a tree, see ``MatrixLayout.pack``."""
        return self.tree(self.layout.pack(values))

    def unpacked(self, tree: PyTree) -> list[Any]:
        """Undoes ``packed``; a state of other leaves raises ValueError."""
        by_leaf: dict[str, list[Any]] = {path: [] for path in self.leaves}
        extra = {}
        for path, value in leaves_with_paths(tree):
            owner = path if path in by_leaf else path.rpartition("/")[0]
            if owner in by_leaf:
                by_leaf[owner].append(value)
            else:
                extra[path] = value
        found = {path: values for path, values in by_leaf.items() if values}
        check_same_leaves(
            dict.fromkeys(self.leaves, 0), dict.fromkeys([*found, *extra], 0), "state"
        )
        return [value for path in self.layout_order() for value in by_leaf[path]]

    def layout_order(self) -> list[str]:
        """Paths of the chosen leaves as the layout has them."""
        return list(dict.fromkeys(self.layout.paths))

    def cast(self, found: dict[str, jax.Array]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns values in the dtypes of the leaves, and what is lost where that is narrower."""
        out = {path: x.astype(self.leaves[path].dtype) for path, x in found.items()}
        lost = {p: x - upcast(out[p]) for p, x in found.items() if out[p].dtype != x.dtype}
        return out, lost
