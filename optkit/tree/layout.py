"""A tree as a list of batches of matrices, and back."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optkit.tree.dims import Dims, dims_by_path
from optkit.tree.dtypes import accumulator_dtype, upcast
from optkit.tree.groups import Reading
from optkit.tree.matrices import MatrixView, Rows, matrix_blocks, matrix_view
from optkit.tree.paths import PyTree, leaves_with_paths, values_by_path
from optkit.tree.roles import MATRIX_ROLES, Role, RuleLike, rule_of
from optkit.tree.sharding import zeros_beside

# Names of kernels that write to the residual stream. Where the stream is cut over devices (FSDP),
# or the other side (tensor parallelism), they lie the other way round than those that read from
# it. Which one a square kernel is decides about an exchange, and never about a result.
_WRITERS = (
    r"(?i)(^|/)((to_)?(o|out|output)(_proj)?|(c_)?proj|down(_proj)?|w_?o|fc_?(2|out)|dense_4h_to_h)"
    r"(_?\d+)?(/|$)"
)


class MatrixLayout:
    """How the leaves of a tree are read as matrices: the one way in and out for every method.

    Attributes:
      structure: the tree's structure.
      paths: path of each part: a leaf, or a run of equal blocks of a fused one.
      views: view of each part.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"up": jnp.ones((4, 2)), "qkv": jnp.ones((2, 6))}
      >>> dims = {"up": optkit.MatrixDims(), "qkv": optkit.MatrixDims(output_blocks=3)}
      >>> layout = optkit.tree.MatrixLayout(params, dims)
      >>> [x.shape for x in layout.split(params)]
      [(3, 2, 2), (2, 4)]
      >>> layout.merge(layout.split(params, "out"), "out")["qkv"].shape
      (2, 6)
    """

    def __init__(self, tree: PyTree, dims: Dims = None, rules: Iterable[RuleLike] = ()) -> None:
        """Reads a tree.

        Args:
          tree: updates or parameters; every leaf must be a matrix or a batch of them.
          dims: see ``dims_by_path``; without it the role rules decide.
          rules: the user's role rules.

        Raises:
          ValueError: a leaf is no matrix, or its dimension numbers do not fit; names the leaf.
        """
        named = dims_by_path(tree, dims)
        rules = tuple(rules)
        self.structure: Any = jax.tree.structure(tree)
        self._parts: list[list[MatrixView]] = []
        paths = []
        for path, leaf in leaves_with_paths(tree):
            rule = rule_of(path, leaf, rules)
            own = rule.dims if dims is None else dims if named is None else named[path]
            role = rule.role if rule.role in MATRIX_ROLES else Role.MATRIX
            view = matrix_view(leaf, own, path=path, role=role)
            self._parts.append(matrix_blocks(view, own, path))
            paths += [path] * len(self._parts[-1])
        self.paths = tuple(paths)
        self.views = tuple(view for parts in self._parts for view in parts)

    def split(self, tree: PyTree, rows: Rows = "short") -> list[jax.Array]:
        """Returns the parts of a tree as ``(*batch, m, n)``; see ``MatrixView.split``."""
        leaves = self.structure.flatten_up_to(tree)
        return [
            view.split(leaf, rows)
            for leaf, parts in zip(leaves, self._parts, strict=True)
            for view in parts
        ]

    def reading(self, specs: PyTree = None, rows: Rows = "short") -> Reading:
        """Returns what is known of each part beyond its array, for ``map_groups``.

        Args:
          specs: tree like the parameters, or a prefix of one, of ``PartitionSpec``s or
            ``NamedSharding``s; leaves may be missing.
          rows: as for ``split``.
        """
        given: dict[str, Any] = {}
        if specs is not None:
            numbered = self.structure.unflatten(range(self.structure.num_leaves))
            given = values_by_path(numbered, specs)
        found = [getattr(given.get(path), "spec", given.get(path)) for path in self.paths]
        return Reading(
            [
                None if spec is None else view.split_spec(spec, rows)
                for spec, view in zip(found, self.views, strict=True)
            ],
            [re.search(_WRITERS, path) is not None for path in self.paths],
        )

    def merge(self, matrices: Sequence[jax.Array], rows: Rows = "short") -> PyTree:
        """Undoes ``split``."""
        given, leaves = iter(matrices), []
        for parts in self._parts:
            merged = [view.merge(next(given), rows) for view in parts]
            cut = parts[0].cut
            leaves.append(
                merged[0] if len(merged) == 1 or cut is None else jnp.concatenate(merged, cut.axis)
            )
        return self.structure.unflatten(leaves)

    def pack(self, values: Sequence[Any]) -> PyTree:
        """Returns one value a part as a tree: at a leaf its value, or of a fused one a tuple."""
        given, leaves = iter(values), []
        for parts in self._parts:
            own = tuple(next(given) for _ in parts)
            leaves.append(own[0] if len(own) == 1 else own)
        return self.structure.unflatten(leaves)

    def unpack(self, tree: PyTree) -> list[Any]:
        """Undoes ``pack``."""
        leaves = self.structure.flatten_up_to(tree)
        return [
            value
            for leaf, parts in zip(leaves, self._parts, strict=True)
            for value in ([leaf] if len(parts) == 1 else leaf)
        ]

    def zeros(
        self,
        tree: PyTree,
        shape_of: Callable[[MatrixView], tuple[int, ...]],
    ) -> PyTree:
        """Returns a fresh statistic of each part, packed: zeros in float32 beside the leaf.

        Args:
          tree: the parameters.
          shape_of: shape of the statistic of one matrix, from its view; batch axes come before it.
        """
        leaves = dict(leaves_with_paths(tree))
        pairs = zip(self.paths, self.views, strict=True)
        return self.pack(
            [
                zeros_beside(
                    leaves[path],
                    (*view.batch_shape, *shape_of(view)),
                    accumulator_dtype(leaves[path]),
                )
                for path, view in pairs
            ]
        )

    def scale(self, tree: PyTree, factors: Sequence[float]) -> PyTree:
        """Multiplies each part by a number; float32 arithmetic, dtypes kept."""
        given, out = iter(factors), []
        for leaf, parts in zip(self.structure.flatten_up_to(tree), self._parts, strict=True):
            own = [next(given) for _ in parts]
            factor: Any = own[0]
            if parts[0].cut is not None and len(own) > 1:
                axis = parts[0].cut.axis
                sizes = [view.cut.width for view in parts if view.cut]
                shape = [1] * leaf.ndim
                shape[axis] = sum(sizes)
                factor = np.repeat(own, sizes).reshape(shape)
            wide = upcast(leaf)
            out.append((wide * jnp.asarray(factor, wide.dtype)).astype(leaf.dtype))
        return self.structure.unflatten(out)


def matrix_views(
    tree: PyTree, dims: Dims = None, rules: Iterable[RuleLike] = ()
) -> list[tuple[str, MatrixView]]:
    """Returns path and view of every matrix (or batch of them) in a tree.

    Args:
      tree: updates or parameters; every leaf must be a matrix or a batch of them.
      dims: see ``dims_by_path``; without it the role rules decide.
      rules: the user's role rules.

    Returns:
      ``[(path, view), ...]`` in flattening order; a fused leaf has several.

    Raises:
      ValueError: a leaf is no matrix, or its dimension numbers do not fit; names the leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> [(p, v.fan_in) for p, v in optkit.tree.matrix_views({"w": jnp.zeros((4, 2, 3))})]
      [('w', 2)]
    """
    layout = MatrixLayout(tree, dims, rules)
    return list(zip(layout.paths, layout.views, strict=True))
