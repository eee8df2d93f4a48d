"""A leaf of any rank as a batch of matrices, and back."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from optkit.tree.dims import AnyDims, MatrixDims
from optkit.tree.roles import Role

Rows = Literal["short", "out", "kept"]


class Cut(NamedTuple):
    """``blocks`` neighbouring blocks of ``size`` along an axis of a fused leaf."""

    axis: int
    start: int
    blocks: int
    size: int

    @property
    def width(self) -> int:
        """How much of the axis the blocks take."""
        return self.blocks * self.size


@dataclass(frozen=True)
class MatrixView:
    """Which axes of a leaf are the input, the output and the batch of its matrices.

    Attributes:
      shape: the leaf's shape; of a cut, with its blocks on an axis of their own.
      in_axes: axes that a layer sums over; together they are ``fan_in``.
      out_axes: axes that index the layer's outputs; together they are ``fan_out``.
      batch_axes: the rest: layers of a scanned stack, experts, heads.
      cut: the part of the leaf that this is; None for all of it.
    """

    shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]
    cut: Cut | None = None

    @property
    def batch_axes(self) -> tuple[int, ...]:
        """Axes along which the leaf is a batch of independent matrices."""
        taken = {*self.in_axes, *self.out_axes}
        return tuple(axis for axis in range(len(self.shape)) if axis not in taken)

    @property
    def fan_in(self) -> int:
        """Product of the input axes."""
        return math.prod(self.shape[axis] for axis in self.in_axes)

    @property
    def fan_out(self) -> int:
        """Product of the output axes."""
        return math.prod(self.shape[axis] for axis in self.out_axes)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the batch axes."""
        return tuple(self.shape[axis] for axis in self.batch_axes)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(short side, long side)`` of each matrix."""
        return min(self.fan_in, self.fan_out), max(self.fan_in, self.fan_out)

    @property
    def out_first(self) -> bool:
        """Tells whether the outputs come first where the short side does."""
        if self.fan_in == self.fan_out:
            return self.out_axes < self.in_axes  # as they lie in memory: nothing to transpose
        return self.fan_out < self.fan_in

    def _order(self, rows: Rows) -> tuple[int, ...]:
        if rows == "kept":
            return tuple(range(len(self.shape)))
        if rows == "out":
            return (*self.batch_axes, *self.out_axes, *self.in_axes)
        # The short side comes first: Newton-Schulz works on it, and a matrix and its transpose
        # fall into one group.
        sides = (self.in_axes, self.out_axes)
        first, second = sides[::-1] if self.out_first else sides
        return (*self.batch_axes, *first, *second)

    def split(self, leaf: jax.Array, rows: Rows = "short") -> jax.Array:
        """Returns the leaf as ``(*batch, short, long)``, or as ``(*batch, fan_out, fan_in)``.

        With "kept" it stays as it lies in memory, of the view's ``shape``: ``in_axes`` and
        ``out_axes`` are its axes, for sums that need no transposed copy.
        """
        if self.cut is not None:
            start, stop = self.cut.start, self.cut.start + self.cut.width
            leaf = jax.lax.slice_in_dim(leaf, start, stop, axis=self.cut.axis).reshape(self.shape)
        if rows == "kept":
            return leaf
        matrix = self.matrix_shape if rows == "short" else (self.fan_out, self.fan_in)
        return jnp.transpose(leaf, self._order(rows)).reshape(*self.batch_shape, *matrix)

    def split_spec(self, spec: PartitionSpec, rows: Rows = "short") -> PartitionSpec:
        """Returns the partition of ``split(leaf)`` from that of the leaf.

        Of axes that are read as one side, the first one's; a fused side counts as whole.
        """
        parts = [*spec, *(None,) * len(self.shape)]
        if self.cut is not None:
            parts[self.cut.axis] = None
            parts[self.cut.axis + 1 : self.cut.axis + 1] = [None] * (self.cut.blocks > 1)
        out_first = self.out_first if rows == "short" else True
        sides = (self.out_axes, self.in_axes) if out_first else (self.in_axes, self.out_axes)
        return PartitionSpec(
            *(parts[axis] for axis in self.batch_axes), *(parts[axes[0]] for axes in sides)
        )

    def merge(self, matrices: jax.Array, rows: Rows = "short") -> jax.Array:
        """Undoes ``split``; of a cut, returns its slice of the leaf."""
        order = self._order(rows)
        moved = matrices.reshape(tuple(self.shape[axis] for axis in order))
        leaf = jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])
        if self.cut is None:
            return leaf
        axis = self.cut.axis
        behind = self.shape[axis + (2 if self.cut.blocks > 1 else 1) :]
        return leaf.reshape(*self.shape[:axis], self.cut.width, *behind)


def _axes(value: int | Sequence[int], rank: int, path: str, name: str) -> tuple[int, ...]:
    axes = (value,) if isinstance(value, int) else tuple(value)
    for axis in axes:
        if not -rank <= axis < rank:
            raise ValueError(
                f"leaf {path!r} of rank {rank} has no axis {axis}, which the {name} of its "
                "MuonDimensionNumbers names; give axes between -rank and rank - 1"
            )
    return tuple(axis % rank for axis in axes)


def matrix_view(
    leaf: Any, dims: AnyDims | None = None, *, path: str = "", role: Role | None = None
) -> MatrixView:
    """Returns how a leaf is read as matrices, fused blocks as one.

    Flax kernels are ``(..., fan_in, fan_out)``: by default the last axis is the output, the one
    before it the input and all others are batch; for a convolution all axes but the last are input.

    Args:
      leaf: array or shape of rank 2 or more.
      dims: ``optax.contrib.MuonDimensionNumbers`` or ``optkit.MatrixDims`` to say otherwise.
      path: the leaf's path, for messages.
      role: the leaf's role, which decides the default axes.

    Returns:
      The view.

    Raises:
      ValueError: rank below 2, an axis that is not there, or an axis named twice.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> view = optkit.tree.matrix_view(jnp.zeros((3, 3, 16, 32)), role="conv")
      >>> view.fan_in, view.fan_out, view.batch_shape
      (144, 32, ())
    """
    shape = tuple(np.shape(leaf))
    rank = len(shape)
    if rank < 2:
        raise ValueError(
            f"leaf {path!r} of shape {shape} is not a matrix; route it to another transformation, "
            'for example optkit.route({"matrix": ..., "rest": ...}, [(optkit.MATRIX_ROLES, '
            '"matrix"), ("*", "rest")])'
        )
    if dims is None:
        inputs = tuple(range(rank - 1)) if role == Role.CONV else (rank - 2,)
        return MatrixView(shape, inputs, (rank - 1,))
    inputs = _axes(dims.reduction_axis, rank, path, "reduction_axis")
    outputs = _axes(dims.output_axis, rank, path, "output_axis")
    if len({*inputs, *outputs}) != len(inputs) + len(outputs):
        raise ValueError(
            f"leaf {path!r}: reduction_axis {inputs} and output_axis {outputs} name an axis twice"
        )
    return MatrixView(shape, inputs, outputs)


def _sizes(
    blocks: int | tuple[int, ...], axes: tuple[int, ...], view: MatrixView, path: str
) -> Any:
    """Sizes of the blocks along the only axis of a side."""
    if len(axes) != 1:
        raise ValueError(
            f"leaf {path!r}: blocks need a side of one axis, this one has the axes {axes}; an axis "
            "that is left out of both sides is a batch axis already"
        )
    whole = view.shape[axes[0]]
    sizes = (whole // blocks,) * blocks if isinstance(blocks, int) and blocks else blocks
    if not isinstance(sizes, tuple) or sum(sizes) != whole or min(sizes, default=0) < 1:
        raise ValueError(
            f"leaf {path!r} of shape {view.shape}: blocks {blocks!r} do not fill axis {axes[0]} of "
            f"size {whole}; give a number that divides it, or sizes that sum to it"
        )
    return sizes


def matrix_blocks(view: MatrixView, dims: AnyDims | None, path: str = "") -> list[MatrixView]:
    """Returns the views of a fused leaf's blocks, neighbours of one size together.

    Args:
      view: the leaf read as one matrix, or a batch of them.
      dims: its dimension numbers.
      path: the leaf's path, for messages.

    Returns:
      One view a run of equal blocks; ``[view]`` if the dimension numbers name no blocks.

    Raises:
      ValueError: blocks on both sides, on a side of several axes, or that do not fill it.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> dims = optkit.MatrixDims(0, 1, output_blocks=(8, 2, 2))
      >>> view = optkit.tree.matrix_view(jnp.zeros((8, 12)), dims)
      >>> [(v.batch_shape, v.fan_out) for v in optkit.tree.matrix_blocks(view, dims)]
      [((), 8), ((2,), 2)]
    """
    asked = (dims.reduction_blocks, dims.output_blocks) if isinstance(dims, MatrixDims) else (1, 1)
    if asked == (1, 1):
        return [view]
    if 1 not in asked:
        raise ValueError(f"leaf {path!r}: give reduction_blocks or output_blocks, not both")
    axes, blocks = (view.in_axes, asked[0]) if asked[1] == 1 else (view.out_axes, asked[1])
    start, out = 0, []
    for size, run in itertools.groupby(_sizes(blocks, axes, view, path)):
        cut = Cut(axes[0], start, len(list(run)), size)
        out.append(_cut(view, cut))
        start += cut.width
    return out


def _cut(view: MatrixView, cut: Cut) -> MatrixView:
    axis = cut.axis
    inserted = (cut.blocks, cut.size) if cut.blocks > 1 else (cut.size,)
    shape = (*view.shape[:axis], *inserted, *view.shape[axis + 1 :])
    shift = len(inserted) - 1  # the blocks come first, so their own axis moves on as well

    def moved(axes: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a + shift if a >= axis else a for a in axes)

    return MatrixView(shape, moved(view.in_axes), moved(view.out_axes), cut)
