"""A leaf of any rank as a batch of matrices, and back."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from optax.contrib import MuonDimensionNumbers

from optkit.tree.paths import PyTree, leaves_with_paths, values_by_path
from optkit.tree.roles import MATRIX_ROLES, Role, RuleLike, rule_of

Dims: TypeAlias = MuonDimensionNumbers | Callable[[PyTree], PyTree] | PyTree | None


@dataclass(frozen=True)
class MatrixView:
    """Which axes of a leaf are the input, the output and the batch of its matrices.

    Attributes:
      shape: the leaf's shape.
      in_axes: axes that a layer sums over; together they are ``fan_in``.
      out_axes: axes that index the layer's outputs; together they are ``fan_out``.
      batch_axes: the rest: layers of a scanned stack, experts.
    """

    shape: tuple[int, ...]
    in_axes: tuple[int, ...]
    out_axes: tuple[int, ...]

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
    def _order(self) -> tuple[int, ...]:
        # The short side comes first: Newton-Schulz works on it, and a matrix and its transpose
        # fall into one group.
        sides = (self.in_axes, self.out_axes)
        if self.fan_in == self.fan_out:
            sides = (min(sides), max(sides))  # as they lie in memory: nothing to transpose
        elif self.fan_in > self.fan_out:
            sides = sides[::-1]
        return (*self.batch_axes, *sides[0], *sides[1])

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """``(short side, long side)`` of each matrix."""
        return min(self.fan_in, self.fan_out), max(self.fan_in, self.fan_out)

    def split(self, leaf: jax.Array) -> jax.Array:
        """Returns the leaf as ``(*batch, short, long)``; a plain wide kernel as it is."""
        return jnp.transpose(leaf, self._order).reshape(*self.batch_shape, *self.matrix_shape)

    def merge(self, matrices: jax.Array) -> jax.Array:
        """Undoes ``split``."""
        order = self._order
        moved = matrices.reshape(tuple(self.shape[axis] for axis in order))
        return jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])


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
    leaf: Any, dims: MuonDimensionNumbers | None = None, *, path: str = "", role: Role | None = None
) -> MatrixView:
    """Returns how a leaf is read as matrices.

    Flax kernels are ``(..., fan_in, fan_out)``: by default the last axis is the output, the one
    before it the input and all others are batch; for a convolution all axes but the last are input.

    Args:
      leaf: array or shape of rank 2 or more.
      dims: ``optax.contrib.MuonDimensionNumbers`` to say otherwise.
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


def is_dims(value: Any) -> bool:
    """Tells whether a value is one ``MuonDimensionNumbers``."""
    return isinstance(value, MuonDimensionNumbers)


def dims_by_path(params: PyTree, dims: Dims) -> dict[str, MuonDimensionNumbers | None] | None:
    """Returns the dimension numbers of each path when a tree of them was given, else None.

    Args:
      params: parameters, updates or shapes.
      dims: None, one ``MuonDimensionNumbers`` for all matrices, a tree (or prefix tree) of them in
        which None means "not a matrix", or a function from params to such a tree.

    Returns:
      A dict over the paths of ``params``, or None if ``dims`` does not name leaves.

    Example:
      >>> import optax, optkit
      >>> one = optax.contrib.MuonDimensionNumbers()
      >>> sorted(optkit.tree.dims_by_path({"a": 1, "b": 2}, {"a": one, "b": None}))
      ['a', 'b']
    """
    if dims is None or is_dims(dims):
        return None
    tree = dims(params) if callable(dims) else dims
    is_leaf = lambda x: x is None or is_dims(x)  # noqa: E731
    out = values_by_path(params, tree, is_leaf)
    for path, _ in leaves_with_paths(params):
        if path not in out:
            raise ValueError(
                f"the tree of dimension numbers has no entry for leaf {path!r}; add one, or None "
                "if the leaf is not a matrix"
            )
    return out


def matrix_views(
    tree: PyTree, dims: Dims = None, rules: Iterable[RuleLike] = ()
) -> list[tuple[str, MatrixView]]:
    """Returns path and view of every leaf of a tree of matrices.

    Args:
      tree: updates or parameters; every leaf must be a matrix or a batch of them.
      dims: see ``dims_by_path``; without it the role rules decide.
      rules: the user's role rules.

    Returns:
      ``[(path, view), ...]`` in flattening order.

    Raises:
      ValueError: a leaf is no matrix, or its dimension numbers do not fit; names the leaf.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> [(p, v.fan_in) for p, v in optkit.tree.matrix_views({"w": jnp.zeros((4, 2, 3))})]
      [('w', 2)]
    """
    named = dims_by_path(tree, dims)
    out = []
    for path, leaf in leaves_with_paths(tree):
        rule = rule_of(path, leaf, rules)
        own = rule.dims if dims is None else dims if named is None else named[path]
        role = rule.role if rule.role in MATRIX_ROLES else Role.MATRIX
        out.append((path, matrix_view(leaf, own, path=path, role=role)))
    return out
