"""The numbers that particles are cut from: all parameters, or fewer that span a subspace."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.linalg.one_by_one import one_by_one
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, leaves_with_paths, upcast
from optkit.tree.dims import dims_by_path
from optkit.tree.matrices import MatrixView

Basis = Literal["auto", "dense", "factored"]

# "auto" stores a basis in full up to so many numbers of a leaf: 16 MiB.
MOST_DENSE = 2**22


@dataclass(frozen=True)
class Part:
    """A leaf, or a run of equal blocks of a fused one, and the coordinates that move it.

    Attributes:
      shape: of the leaf where each number is its own coordinate.
      view: how it is read as matrices; None where each number is its own coordinate.
      rank: of each matrix's share, at most its short side.
      dense: the basis is stored in full.
    """

    shape: tuple[int, ...]
    view: MatrixView | None = None
    rank: int = 0
    dense: bool = False

    @property
    def batch(self) -> int:
        """Number of matrices."""
        return math.prod(self.view.batch_shape) if self.view else 1

    @property
    def own(self) -> int:
        """Coordinates of one matrix."""
        if self.view is None:
            return math.prod(self.shape)
        return self.rank * (self.view.fan_out + self.view.fan_in)

    def draw(self, key: jax.Array, dtype: jnp.dtype) -> Any:
        """Returns a basis: ``(batch, m*n, own)``, or factors ``U, V``, orthonormal."""
        if self.view is None:
            return ()
        m, n = self.view.fan_out, self.view.fan_in
        if not self.dense:
            keys = jax.random.split(key)
            shapes = ((self.batch, m, self.rank), (self.batch, n, self.rank))
            return tuple(
                one_by_one(jnp.linalg.qr, jax.random.normal(k, shape, dtype))[0]
                for k, shape in zip(keys, shapes, strict=True)
            )
        if m * n == self.own:
            return jnp.tile(jnp.eye(self.own, dtype=dtype), (self.batch, 1, 1))
        drawn = jax.random.normal(key, (self.batch, m * n, self.own), dtype)
        if m * n < self.own:
            return drawn / math.sqrt(self.own)
        return one_by_one(jnp.linalg.qr, drawn)[0]

    def spread(self, basis: Any, moved: jax.Array) -> jax.Array:
        """Returns what ``(members, batch*own)`` coordinates add to the part, a member a row."""
        members = moved.shape[0]
        if self.view is None:
            return moved.reshape(members, *self.shape)
        each = moved.reshape(members, self.batch, self.own)
        if self.dense:
            full = jnp.einsum("bxc,nbc->nbx", basis, each)
        else:
            u, v = basis
            split = self.view.fan_in * self.rank
            inner = each[..., :split].reshape(members, self.batch, -1, self.rank)
            outer = each[..., split:].reshape(members, self.batch, -1, self.rank)
            full = jnp.einsum("bmr,nbkr->nbmk", u, inner) + jnp.einsum("nbmr,bkr->nbmk", outer, v)
        matrix = (*self.view.batch_shape, self.view.fan_out, self.view.fan_in)
        return jax.vmap(lambda x: self.view.merge(x.reshape(matrix), "out"))(full)  # type: ignore[union-attr]


class Coordinates:
    """How coordinates move a tree; built of shapes alone.

    Attributes:
      parts: of each leaf.
      count: number of coordinates.
      dtype: they are kept in: float32, or float64 if a leaf is.
    """

    def __init__(
        self,
        params: PyTree,
        rank: int | None,
        *,
        basis: Basis = "auto",
        dims: Dims = None,
        rules: Iterable[RuleLike] = (),
    ) -> None:
        """Reads a tree; without a rank each number is its own coordinate."""
        named = leaves_with_paths(params)
        for path, leaf in named:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise ValueError(
                    f"leaf {path!r} is of {leaf.dtype}, which no small step can move; keep what is "
                    "not trained out of params"
                )
        self.structure: Any = jax.tree.structure(params)
        self.dtype = jnp.result_type(jnp.float32, *(leaf.dtype for _, leaf in named))
        said = dims_by_path(params, dims)
        whole = {
            path: leaf
            for path, leaf in named
            if rank and leaf.ndim >= 2 and leaf.size and (said is None or said[path] is not None)
        }
        own = dims if said is None else {path: said[path] for path in whole}
        layout = MatrixLayout(whole, own, rules)
        views: dict[str, list[MatrixView]] = {path: [] for path in whole}
        for path, view in zip(layout.paths, layout.views, strict=True):
            views[path].append(view)
        self.parts = [
            [_part(view, rank or 0, basis) for view in views[path]]
            if path in views
            else [Part(leaf.shape)]
            for path, leaf in named
        ]
        self.count = sum(part.batch * part.own for parts in self.parts for part in parts)

    def draw(self, key: jax.Array) -> list[list[Any]]:
        """Returns a basis of each part; empty ones where numbers are coordinates themselves."""
        bases, index = [], 0
        for parts in self.parts:
            bases.append(
                [
                    p.draw(jax.random.fold_in(key, index + i), self.dtype)
                    for i, p in enumerate(parts)
                ]
            )
            index += len(parts)
        return bases

    def spread(self, basis: list[list[Any]], moved: jax.Array) -> PyTree:
        """Returns what ``(members, count)`` coordinates add to the tree: ``(members, *shape)``."""
        start, leaves = 0, []
        for parts, bases in zip(self.parts, basis, strict=True):
            made = []
            for part, own in zip(parts, bases, strict=True):
                stop = start + part.batch * part.own
                made.append(part.spread(own, moved[:, start:stop]))
                start = stop
            leaves.append(made[0] if len(made) == 1 else _joined(parts, made))
        return self.structure.unflatten(leaves)


def _part(view: MatrixView, rank: int, basis: Basis) -> Part:
    rank = min(rank, *view.matrix_shape)
    own = rank * (view.fan_out + view.fan_in)
    size = math.prod(view.batch_shape) * view.fan_out * view.fan_in * own
    return Part((), view, rank, basis == "dense" or (basis == "auto" and size <= MOST_DENSE))


def _joined(parts: Sequence[Part], made: Sequence[jax.Array]) -> jax.Array:
    cut = parts[0].view.cut if parts[0].view else None
    assert cut is not None  # only fused leaves have several parts
    return jnp.concatenate(made, cut.axis + 1)


def added(params: PyTree, moved: PyTree) -> PyTree:
    """Returns members: parameters and what is added to each, in the dtypes of the parameters."""
    return jax.tree.map(lambda p, d: (upcast(p)[None] + d).astype(p.dtype), params, moved)
