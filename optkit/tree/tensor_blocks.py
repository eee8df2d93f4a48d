"""A tree as batches of tensors of bounded sides: dims merged, long ones cut into blocks."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from optkit.tree.dims import dims_by_path
from optkit.tree.matrices import MatrixView, matrix_blocks, matrix_view
from optkit.tree.paths import PyTree, leaves_with_paths
from optkit.tree.roles import MATRIX_ROLES, Role, RuleLike, rule_of
from optkit.tree.sharding import mesh_of, place, place_like, spec_of

Merging = Literal["last", "first", "none"]


def merge_dims(
    shape: Sequence[int], limit: int, *, order: Merging = "last", keep: int = 1
) -> tuple[int, ...]:
    """Returns the shape of a tensor whose neighbouring small axes are read as one.

    Args:
      shape: the tensor's.
      limit: the most that the product of merged axes may be.
      order: "last" drops axes of 1 and merges from the last axis on (facebookresearch's Shampoo);
        "first" from the first on, whereby axes of 1 go (google-research's, and SOAP's); "none"
        leaves the shape as it is.
      keep: "last" merges while more axes than this are left.

    Returns:
      The shape, of at least one axis.

    Example:
      >>> import optkit
      >>> merge = optkit.tree.merge_dims
      >>> merge((3, 3, 16, 32), 128), merge((3, 3, 16, 32), 128, order="first")
      ((3, 48, 32), (9, 16, 32))
      >>> merge((8, 12), 1024), merge((8, 12), 1024, keep=2)
      ((96,), (8, 12))
    """
    if order == "none":
        return tuple(shape) or (1,)
    left = [size for size in shape if size != 1]
    if not left:
        return (1,)
    if order == "first":
        out = left[:1]
        for size in left[1:]:
            if out[-1] * size <= limit:
                out[-1] *= size
            else:
                out.append(size)
        return tuple(out)
    merged = left[-1:]
    for index in reversed(range(len(left) - 1)):
        if merged[0] * left[index] <= limit and index + 1 + len(merged) > keep:
            merged[0] *= left[index]
        else:
            merged.insert(0, left[index])
    return tuple(merged)


@dataclass(frozen=True)
class BlockKind:
    """Blocks of one shape in a grid: along each axis (where it starts, how many, of what size)."""

    cuts: tuple[tuple[int, int, int], ...]

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return math.prod(count for _, count, _ in self.cuts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Shape of a block."""
        return tuple(size for _, _, size in self.cuts)


@dataclass(frozen=True)
class BlockView:
    """A leaf, or a run of equal blocks of a fused one, as a batch of tensors cut into blocks.

    Attributes:
      view: the matrices that it is; None if its own axes are the tensor's.
      batch: sizes of batch axes.
      shape: shape of one tensor, neighbouring axes merged.
      limit: the largest side of a block.
    """

    view: MatrixView | None
    batch: tuple[int, ...]
    shape: tuple[int, ...]
    limit: int

    @property
    def kinds(self) -> tuple[BlockKind, ...]:
        """The blocks by shape: those of full size, and what remains along each axis."""
        if not math.prod(self.shape) or not math.prod(self.batch):
            return ()
        sides = []
        for size in self.shape:
            full, rest = divmod(size, self.limit)
            cuts = [(0, full, self.limit)] if full else []
            sides.append(cuts + ([(full * self.limit, 1, rest)] if rest else []))
        return tuple(BlockKind(cuts) for cuts in itertools.product(*sides))

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one block a tensor."""
        return len(self.kinds) > 1 or any(kind.count > 1 for kind in self.kinds)

    def batch_of(self, kind: BlockKind) -> tuple[int, ...]:
        """Batch axes of the blocks of a kind: those of the leaf, and one if there are several."""
        return self.batch + ((kind.count,) if kind.count > 1 else ())

    @property
    def _in_place(self) -> bool:
        """Whether the matrices lie in memory as they are read."""
        view = self.view
        if view is None or view.cut is not None:
            return False
        axes = (*view.batch_axes, *view.in_axes, *view.out_axes)
        return axes == tuple(range(len(view.shape)))

    def split(self, leaf: jax.Array) -> list[jax.Array]:
        """Returns the blocks of each kind, ``(*batch, [blocks,] *sizes)``."""
        if not self.kinds:
            return []
        x = leaf if self.view is None or self._in_place else self.view.split(leaf, "out")
        whole = (*self.batch, *self.shape)
        x = x if x.shape == whole else x.reshape(whole)
        return [self._blocks(x, kind) for kind in self.kinds]

    def _blocks(self, x: jax.Array, kind: BlockKind) -> jax.Array:
        if not self.is_cut:
            return x
        rank, order = len(self.batch), len(self.shape)
        for axis, (start, count, size) in enumerate(kind.cuts):
            x = jax.lax.slice_in_dim(x, start, start + count * size, axis=rank + axis)
        x = x.reshape(*self.batch, *itertools.chain(*((c, s) for _, c, s in kind.cuts)))
        grid = [rank + 2 * i for i in range(order)]
        x = jnp.transpose(x, [*range(rank), *grid, *(i + 1 for i in grid)])
        return x.reshape(*self.batch_of(kind), *kind.sizes)

    def merge(self, blocks: Sequence[jax.Array], leaf: Any) -> jax.Array:
        """Undoes ``split``; ``leaf`` gives the shape of a leaf without entries."""
        if not self.kinds:
            return jnp.zeros(leaf.shape, leaf.dtype)
        x = self._assembled(blocks)
        if self.view is None or self._in_place:
            return x.reshape(np.shape(leaf) if self.view is None else self.view.shape)
        return self.view.merge(x, "out")

    def _assembled(self, blocks: Sequence[jax.Array]) -> jax.Array:
        if not self.is_cut:
            return blocks[0]
        rank, order = len(self.batch), len(self.shape)
        parts = []
        for kind, x in zip(self.kinds, blocks, strict=True):
            counts = tuple(count for _, count, _ in kind.cuts)
            x = x.reshape(*self.batch, *counts, *kind.sizes)
            turn = itertools.chain(*((rank + i, rank + order + i) for i in range(order)))
            x = jnp.transpose(x, [*range(rank), *turn])
            parts.append(x.reshape(*self.batch, *(c * s for _, c, s in kind.cuts)))
        for axis in reversed(range(order)):
            # Kinds are in the order of a product: those that differ in the last axis are next.
            pieces = -(-self.shape[axis] // self.limit)
            along = 1 if pieces == 1 or self.shape[axis] % self.limit == 0 else 2
            parts = [
                jnp.concatenate(parts[i : i + along], rank + axis) if along > 1 else parts[i]
                for i in range(0, len(parts), along)
            ]
        return parts[0]


class BlockLayout:
    """How the leaves of a tree are read as tensors in blocks, for methods with a matrix a side.

    Attributes:
      structure: the tree's structure.
      paths: path of each group of blocks.
      blocks: (batch axes, shape of a block) of each group: all blocks of one shape of a leaf.
      tensors: number of the tensor (or batch of them) that each group is cut from.
      counts_of: how many blocks of its shape a tensor has.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 12)), "bias": jnp.ones(12)}}
      >>> layout = optkit.tree.BlockLayout(params, 8)
      >>> [x.shape for x in layout.split(params)]
      [(8,), (4,), (8, 8), (8, 4)]
      >>> layout.merge(layout.split(params), params)["dense"]["kernel"].shape
      (8, 12)
    """

    def __init__(
        self,
        tree: PyTree,
        limit: int,
        *,
        dims: Any = None,
        rules: Iterable[RuleLike] = (),
        merging: Merging = "last",
        keep: int = 2,
        merge_limit: int | None = None,
    ) -> None:
        """Reads a tree.

        Leaves with the role of a hidden matrix, or with dimension numbers, are (batches of)
        matrices as everywhere in optkit; the axes of all others are the tensor's, merged.

        Args:
          tree: updates or parameters.
          limit: the largest side of a block.
          dims: see ``dims_by_path``; "tensor" reads the axes of every leaf as the tensor's.
          rules: the user's role rules.
          merging: see ``merge_dims``.
          keep: see ``merge_dims``.
          merge_limit: the limit of merging; None for ``limit``.

        Raises:
          ValueError: dimension numbers do not fit; names the leaf.
        """
        raw = isinstance(dims, str)
        if raw and dims != "tensor":
            raise ValueError(f"dims={dims!r}: give dimension numbers, or 'tensor'")
        named = None if raw else dims_by_path(tree, dims)
        rules, most = tuple(rules), limit if merge_limit is None else merge_limit
        self.structure: Any = jax.tree.structure(tree)
        self._parts: list[list[BlockView]] = []
        for path, leaf in leaves_with_paths(tree):
            shape = tuple(np.shape(leaf))
            rule = rule_of(path, leaf, rules)
            own = rule.dims if dims is None else dims if named is None else named[path]
            own = None if raw else own
            matrix = rule.role in MATRIX_ROLES or (named is not None and own is not None)
            if raw or len(shape) < 2 or not matrix:
                merged = merge_dims(shape, most, order=merging, keep=keep)
                self._parts.append([BlockView(None, (), merged, limit)])
                continue
            role = rule.role if rule.role in MATRIX_ROLES else Role.MATRIX
            view = matrix_view(leaf, own, path=path, role=role)
            self._parts.append([_of_matrices(v, limit) for v in matrix_blocks(view, own, path)])
        found = [
            (path, (view.batch_of(kind), kind.sizes), kind.count)
            for (path, _), views in zip(leaves_with_paths(tree), self._parts, strict=True)
            for view in views
            for kind in view.kinds
        ]
        self.paths = tuple(path for path, _, _ in found)
        self.blocks = tuple(block for _, block, _ in found)
        self.counts_of = tuple(count for _, _, count in found)
        kinds = [len(view.kinds) for views in self._parts for view in views]
        self.tensors = tuple(i for i, count in enumerate(kinds) for _ in range(count))
        self.counts = [sum(len(view.kinds) for view in views) for views in self._parts]

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns the groups of blocks of a tree, ``(*batch, *sizes)`` each."""
        out: list[jax.Array] = []
        for leaf, views in zip(self.structure.flatten_up_to(tree), self._parts, strict=True):
            own = leaf if _stays(views) else _whole(leaf)
            out += itertools.chain(*(view.split(own) for view in views))
        return out

    def merge(self, blocks: Sequence[jax.Array], like: PyTree) -> PyTree:
        """Undoes ``split``; leaves lie where those of ``like`` do, whose dtypes do not matter."""
        given, leaves = iter(blocks), []
        for leaf, views in zip(self.structure.flatten_up_to(like), self._parts, strict=True):
            parts = [view.merge([next(given) for _ in view.kinds], leaf) for view in views]
            cut = None if views[0].view is None else views[0].view.cut
            whole = parts[0] if cut is None else jnp.concatenate(parts, cut.axis)
            leaves.append(whole if _stays(views) else place_like(whole, leaf))
        return self.structure.unflatten(leaves)

    def leaf_of(self, tree: PyTree) -> list[Any]:
        """Returns the leaf that each group of blocks is of."""
        pairs = zip(self.structure.flatten_up_to(tree), self.counts, strict=True)
        return [leaf for leaf, count in pairs for _ in range(count)]

    def pack(self, values: Sequence[Sequence[Any]]) -> tuple[PyTree, ...]:
        """Returns lists of values, one a group of blocks, as trees like the parameters.

        The first tree has the first value of each leaf, and so on; ``optax.MaskedNode`` where a
        leaf has no more. So each array of a state has the path of its parameter.
        """
        given = iter(values)
        own = [list(itertools.chain(*(next(given) for _ in range(n)))) for n in self.counts]
        depth = max(map(len, own), default=0)
        return tuple(
            self.structure.unflatten([v[i] if i < len(v) else optax.MaskedNode() for v in own])
            for i in range(depth)
        )

    def unpack(self, trees: Sequence[PyTree], lengths: Sequence[int]) -> list[list[Any]]:
        """Undoes ``pack``: ``lengths`` tells how many values each group of blocks has."""
        columns = [self.structure.flatten_up_to(tree) for tree in trees]
        numbers, out = iter(lengths), []
        for leaf, count in enumerate(self.counts):
            at = 0
            for _ in range(count):
                length = next(numbers)
                out.append([columns[at + i][leaf] for i in range(length)])
                at += length
        return out


def _of_matrices(view: MatrixView, limit: int) -> BlockView:
    """Orients matrices as they lie in memory where that needs no transposition."""
    out = BlockView(view, view.batch_shape, (view.fan_in, view.fan_out), limit)
    if out._in_place:
        return out
    return BlockView(view, view.batch_shape, (view.fan_out, view.fan_in), limit)


def _stays(views: Sequence[BlockView]) -> bool:
    """Whether no axis that may be cut over devices is cut or merged."""
    return all(view.view is not None and not view.is_cut for view in views)


def _whole(leaf: jax.Array) -> jax.Array:
    """A leaf that lies whole on each device, on Explicit axes: it may be cut anywhere."""
    if spec_of(leaf) is None:
        return leaf
    return place(leaf, mesh_of(leaf), PartitionSpec(*(None,) * leaf.ndim))
