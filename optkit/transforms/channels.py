"""Channels of weights: where the radial component of an update is, and whether it matters."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.norms import safe_sqrt, to_unit_peak
from optkit.transforms.hyperparams import Scalar
from optkit.transforms.partial_update import only
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    MatrixLayout,
    MatrixView,
    PyTree,
    Role,
    RuleLike,
    Selector,
    dims_by_path,
    leaves_with_paths,
    rule_of,
    selects,
    upcast,
)

Axes = tuple[int, ...]
_PROJECTED = (*MATRIX_ROLES, Role.EMBEDDING, Role.HEAD)


class Numbers(NamedTuple):
    """The numbers of one update."""

    delta: Scalar
    wd_ratio: Scalar
    eps: Scalar
    coefficient: Scalar | None  # of the weight decay


def _floored(square: jax.Array, low: jax.Array) -> jax.Array:
    norm = jnp.maximum(safe_sqrt(square), low)
    return jnp.where(norm > 0, norm, 1.0)


def projected(
    summed: Axes,
    whole: Axes,
    numbers: Numbers,
    decays: bool,
    both: bool,
    w: jax.Array,
    g: jax.Array,
    u: jax.Array,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Returns the projected update of a batch of matrices with its decay.

    Args:
      summed: axes of one channel, counted from the end.
      whole: axes of one matrix, likewise.
      numbers: those of this update.
      decays: these weights decay.
      both: return the update without decay as well, before it.
      w: weights, float32 or better.
      g: raw gradient, of their shape.
      u: update, of their shape.
    """
    if not w.size:
        return (u, u) if both else u
    unit, length = to_unit_peak(w, whole)
    of_gradient, peak = to_unit_peak(g, whole)
    floor, least = numbers.eps / length, numbers.eps / peak
    # Sums of a channel: with the gradient, of the gradient, of the weights, with the update.
    channel = [
        jnp.sum(x, axis=summed, keepdims=True)
        for x in (unit * of_gradient, jnp.square(of_gradient), jnp.square(unit), unit * u)
    ]
    # Else the compiler sums the products for both, and writes all four of them to memory for it.
    channel = jax.lax.optimization_barrier(channel)
    matrix = [jnp.sum(x, axis=whole, keepdims=True) for x in channel]
    near, factor = [], []
    for axes, (dot, gg, ww, wu) in ((summed, channel), (whole, matrix)):
        cosine = jnp.abs(dot) / (_floored(gg, least) * _floored(ww, floor))
        size = math.prod(w.shape[axis] for axis in axes)
        largest = jnp.max(cosine, axis=whole, keepdims=True)
        near.append(largest < numbers.delta / math.sqrt(size))
        below = safe_sqrt(ww) + floor
        below = jnp.where(below > 0, below, 1.0)
        factor.append(wu / below / below)
    # Chosen and not branched: both are a few numbers by now.
    taken = jnp.where(near[0], factor[0], jnp.where(near[1], factor[1], 0.0))
    bare = out = u - taken * unit
    if decays and numbers.coefficient is not None:
        out = bare + numbers.coefficient * jnp.where(near[0] | near[1], numbers.wd_ratio, 1.0) * w
    return (bare, out) if both else out


class Channels:
    """Which leaves of a tree are read as matrices, and what one channel of each sums over.

    Attributes:
      paths: path of each part: a leaf, or a run of equal blocks of a fused one.
      axes: of each part, the axes of one channel and those of the matrix, counted from the end.
      on: of each leaf, whether it is read.
    """

    def __init__(
        self, tree: PyTree, chosen: Selector | None, dims: Dims, roles: Sequence[RuleLike]
    ) -> None:
        """Reads a tree; raises as ``MatrixLayout`` if a chosen leaf is no matrix."""
        # A function of the parameters sees all of them.
        own = dims(tree) if callable(dims) else dims
        named = dims_by_path(tree, own)
        self._structure: Any = jax.tree.structure(tree)
        self.on: list[bool] = []
        by_role: dict[str, Role] = {}
        for path, leaf in leaves_with_paths(tree):
            role = by_role[path] = rule_of(path, leaf, roles).role
            if chosen is not None:
                on = selects(chosen, path, leaf, roles)
            elif named is not None:
                on = named[path] is not None
            else:
                on = jnp.ndim(leaf) >= 2 and role in _PROJECTED
            self.on.append(on)
        self._layout = MatrixLayout(only(tree, self.on), own, roles)
        self.paths = self._layout.paths
        pairs = zip(self.paths, self._layout.views, strict=True)
        # A token of a table is a channel of it: Flax has the tokens first, where inputs are.
        self.axes = [
            _axes(view, named is None and own is None and by_role[path] == Role.EMBEDDING)
            for path, view in pairs
        ]

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns the parts of the chosen leaves as they lie in memory, in float32."""
        return self._layout.split(jax.tree.map(upcast, only(tree, self.on)), "kept")

    def merge(self, parts: Sequence[jax.Array], others: PyTree) -> PyTree:
        """Undoes ``split``; the other leaves are those given, dtypes too."""
        new = iter(jax.tree.leaves(self._layout.merge(parts, "kept")))
        leaves = self._structure.flatten_up_to(others)
        return self._structure.unflatten(
            [
                next(new).astype(leaf.dtype) if on else leaf
                for leaf, on in zip(leaves, self.on, strict=True)
            ]
        )


def _axes(view: MatrixView, by_input: bool) -> tuple[Axes, Axes]:
    """The axes that a channel sums over, and those of the matrix, counted from the end."""
    rank = len(view.shape)
    summed = view.out_axes if by_input else view.in_axes
    both = sorted((*view.in_axes, *view.out_axes))
    return tuple(axis - rank for axis in sorted(summed)), tuple(axis - rank for axis in both)
