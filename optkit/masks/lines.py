"""Columns and rows of a leaf's matrices, as axes of the leaf."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.tree import (
    Dims,
    MatrixView,
    RuleLike,
    matrix_view,
)
from optkit.tree.dims import is_dims
from optkit.tree.roles import rule_of

Side = Literal["in", "out"]


@dataclass(frozen=True)
class Lines:
    """Columns (inputs) or rows (outputs) of a leaf's matrices, as axes of the leaf.

    Attributes:
      view: how the leaf is a matrix.
      side: "in" for columns, "out" for rows.
    """

    view: MatrixView
    side: Side

    @property
    def axes(self) -> tuple[int, ...]:
        """Axes that index the lines of one matrix."""
        return self.view.in_axes if self.side == "in" else self.view.out_axes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a mask of lines."""
        real = {*self.axes, *self.view.batch_axes}
        return tuple(n if axis in real else 1 for axis, n in enumerate(self.view.shape))

    @property
    def count(self) -> int:
        """Lines of one matrix."""
        return math.prod(self.view.shape[axis] for axis in self.axes)

    @property
    def batch(self) -> int:
        """Matrices of the leaf."""
        return math.prod(self.view.batch_shape)

    @property
    def _order(self) -> tuple[int, ...]:
        other = self.view.out_axes if self.side == "in" else self.view.in_axes
        return (*self.view.batch_axes, *self.axes, *other)

    def flat(self, x: jax.Array) -> jax.Array:
        """Returns ``(matrices, lines, entries of a line)`` of a leaf, or of a mask of lines."""
        return jnp.transpose(x, self._order).reshape(self.batch, self.count, -1)

    def leaf(self, flat: jax.Array) -> jax.Array:
        """Undoes ``flat`` of a leaf."""
        order = self._order
        moved = flat.reshape([self.view.shape[axis] for axis in order])
        return jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])

    def mask(self, chosen: jax.Array) -> jax.Array:
        """Returns the mask of the leaf from that of its lines, ``(matrices, lines)``."""
        order = self._order
        moved = chosen.reshape([self.shape[axis] for axis in order])
        return jnp.transpose(moved, [order.index(axis) for axis in range(len(order))])


def view_of(path: str, leaf: Any, dims: Dims, named: Any, roles: Sequence[RuleLike]) -> MatrixView:
    """Returns how a leaf is a matrix; ``named`` are the dimension numbers of a tree by path."""
    rule = rule_of(path, leaf, roles)
    own = rule.dims if dims is None else dims if is_dims(dims) else (named or {}).get(path)
    return matrix_view(leaf, own, path=path, role=rule.role)


def top(scores: jax.Array, count: int) -> jax.Array:
    """The largest of the last axis, of equal ones the first."""
    order = jnp.argsort(jnp.argsort(-scores, axis=-1), axis=-1)
    return order < count
