"""A tree as batches of tensors that have a statistic for each axis, and back."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from optkit.tree.dims import Dims, dims_by_path
from optkit.tree.matrices import MatrixView, matrix_view
from optkit.tree.paths import PyTree, leaves_with_paths
from optkit.tree.roles import MATRIX_ROLES, Role, RuleLike, rule_of

_READ_AS_MATRICES = (*MATRIX_ROLES, Role.EMBEDDING, Role.HEAD)


class AxisView(NamedTuple):
    """How one leaf is read.

    Attributes:
      path: the leaf's path.
      shape: its shape.
      batch: sizes of the batch axes: layers of a scanned stack, experts, heads.
      axes: sizes of the others, those that have statistics; empty where the leaf is no tensor but
        a (batch of) vectors whose entries stand alone.
      matrix: the view as a matrix; None where the leaf is read axis by axis, or not at all.
    """

    path: str
    shape: tuple[int, ...]
    batch: tuple[int, ...]
    axes: tuple[int, ...]
    matrix: MatrixView | None

    @property
    def stands_alone(self) -> bool:
        """Whether the leaf is no tensor: its entries have statistics of their own."""
        return not self.axes

    def split(self, leaf: jax.Array) -> jax.Array:
        """Returns ``(*batch, *axes)``: a matrix ``(*batch, fan_in, fan_out)``, a number (1,)."""
        if self.matrix is not None:
            return self.matrix.split(leaf, "out").mT
        if self.stands_alone:
            return leaf if self.shape else leaf.reshape(1)
        return leaf.reshape(*self.batch, *self.axes)

    def merge(self, tensor: jax.Array) -> jax.Array:
        """Undoes ``split``."""
        if self.matrix is not None:
            return self.matrix.merge(tensor.mT, "out")
        return tensor.reshape(self.shape)


class AxisLayout:
    """How the leaves of a tree are read as tensors, with one statistic an axis.

    By default hidden matrices, convolutions, embeddings and heads are matrices (or batches of them)
    as ``MatrixLayout`` reads them, with two axes; norms, biases and whatever ``dims`` says None of
    are vectors. With ``whole`` every axis of every leaf is an axis of its tensor, as reference
    implementations that know no roles read them.

    Attributes:
      structure: the tree's structure.
      views: one a leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"layers": {"up": jnp.ones((3, 4, 2))}, "bias": jnp.ones(5)}
      >>> [(v.path, v.batch, v.axes) for v in optkit.tree.AxisLayout(params).views]
      [('bias', (), ()), ('layers/up', (3,), (4, 2))]
      >>> [v.axes for v in optkit.tree.AxisLayout(params, whole=True).views]
      [(5,), (3, 4, 2)]
    """

    def __init__(
        self,
        tree: PyTree,
        dims: Dims = None,
        rules: Iterable[RuleLike] = (),
        *,
        whole: bool = False,
        merge: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None,
    ) -> None:
        """Reads a tree.

        Args:
          tree: updates or parameters.
          dims: see ``dims_by_path``; without it the role rules decide.
          rules: the user's role rules.
          whole: read every axis of every leaf.
          merge: with ``whole``, which neighbouring axes are read as one: sizes to sizes.

        Raises:
          ValueError: dimension numbers that do not fit; names the leaf. Blocks of fused kernels.
        """
        named = None if whole else dims_by_path(tree, dims)
        rules = tuple(rules)
        self.structure: Any = jax.tree.structure(tree)
        views = []
        for path, leaf in leaves_with_paths(tree):
            if whole:
                shape = tuple(np.shape(leaf))
                axes = shape if merge is None else merge(shape)
                views.append(AxisView(path, shape, (), axes or (1,), None))
            else:
                views.append(_view(path, leaf, dims, named, rules))
        self.views = tuple(views)

    def leaves(self, tree: PyTree) -> list[Any]:
        """The leaves of a tree like the one that was read; None where it has none."""
        return self.structure.flatten_up_to(tree)

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns each leaf as ``(*batch, *axes)``."""
        return [v.split(leaf) for v, leaf in zip(self.views, self.leaves(tree), strict=True)]

    def merge(self, tensors: Sequence[jax.Array]) -> PyTree:
        """Undoes ``split``."""
        pairs = zip(self.views, tensors, strict=True)
        return self.structure.unflatten([view.merge(x) for view, x in pairs])

    def pack(self, values: Sequence[Sequence[Any]]) -> tuple[PyTree, ...]:
        """Returns the values of each leaf, one an axis, as one tree an axis.

        Where a leaf has fewer axes than others, the trees behind hold None. So each array has the
        path of its parameter.
        """
        most = max((len(own) for own in values), default=0)
        return tuple(
            self.structure.unflatten([own[i] if i < len(own) else None for own in values])
            for i in range(most)
        )

    def unpack(self, trees: Sequence[PyTree], counts: Sequence[int]) -> list[tuple[Any, ...]]:
        """Undoes ``pack``: of each leaf so many values as ``counts`` says."""
        columns = [self.leaves(tree) for tree in trees]
        return [tuple(columns[j][i] for j in range(n)) for i, n in enumerate(counts)]


def _view(path: str, leaf: Any, dims: Dims, named: Any, rules: tuple[RuleLike, ...]) -> AxisView:
    shape = tuple(np.shape(leaf))
    rule = rule_of(path, leaf, rules)
    own = rule.dims if dims is None else dims if named is None else named[path]
    wanted = rule.role in _READ_AS_MATRICES if named is None else own is not None
    if len(shape) < 2 or not wanted:
        return AxisView(path, shape, shape[:-1], (), None)
    role = rule.role if rule.role in MATRIX_ROLES else Role.MATRIX
    view = matrix_view(leaf, own, path=path, role=role)
    blocks = {getattr(own, name, 1) for name in ("reduction_blocks", "output_blocks")}
    if blocks != {1}:
        raise ValueError(
            f"leaf {path!r}: blocks of fused kernels have no statistics of their own here; leave "
            "the blocks out, or split the kernel"
        )
    return AxisView(path, shape, view.batch_shape, (view.fan_in, view.fan_out), view)
