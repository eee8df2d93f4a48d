"""How one matrix is projected onto a subspace and back: which side, which rank, which shape."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import check_static_number
from optkit.tree import MatrixLayout, MatrixView
from optkit.tree.sharding import whole_along

Side = Literal["std", "reverse_std", "left", "right", "full"]
BasisKind = Literal[
    "svd",
    "randomized_svd",
    "power_iteration",
    "online",
    "gaussian",
    "orthonormal",
    "permutation",
    "columns",
    "rows",
    "randk",
]
# Of a matrix (fan_out, fan_in), as the papers write it, "right" shortens the rows.
AXIS = {"right": -2, "left": -1}  # of arrays (*batch, fan_in, fan_out)
FROM_GRADIENT = ("svd", "randomized_svd", "power_iteration", "online")
# Bases of unit vectors: what they leave is known without subtraction.
COORDINATES = ("permutation", "columns", "rows", "randk")
_FORCED: dict[str, Side] = {"columns": "right", "rows": "left"}


def sides_of(side: Side, fan_out: int, fan_in: int) -> tuple[str, ...]:
    """Returns which sides of a matrix are projected; ties go to the right, as in GaLore."""
    if side == "full":
        return ("right", "left")
    if side in ("std", "reverse_std"):
        return ("right",) if (fan_out >= fan_in) == (side == "std") else ("left",)
    return (side,)


class Projector(NamedTuple):
    """How one part of a layout, a matrix or a batch of them, is projected."""

    path: str
    part: int  # number among the parts of its leaf
    batch: tuple[int, ...]
    fan_in: int
    fan_out: int
    sides: tuple[str, ...]  # projected ones; none for single entries
    rank: int  # or the number of entries
    coordinates: bool  # bases are indices of unit vectors

    def size(self, side: str) -> int:
        """Length of a projected side."""
        return self.fan_in if side == "right" else self.fan_out

    @property
    def basis_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of the basis of each projected side; of entries, that of their indices."""
        if not self.sides:
            return ((*self.batch, self.rank),)
        if self.coordinates:
            return tuple((*self.batch, self.rank) for _ in self.sides)
        return tuple((*self.batch, self.size(side), self.rank) for side in self.sides)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is projected, lying like a Flax kernel."""
        if not self.sides:
            return (*self.batch, self.rank)
        rows = self.rank if "right" in self.sides else self.fan_in
        return (*self.batch, rows, self.rank if "left" in self.sides else self.fan_out)

    def down(self, x: jax.Array, bases: Sequence[jax.Array], precision: Any) -> jax.Array:
        """Projects ``(*batch, fan_in, fan_out)``."""
        if not self.sides:
            return jnp.take_along_axis(x.mT.reshape(*self.batch, -1), bases[0], -1)
        for side, basis in zip(self.sides, bases, strict=True):
            x = whole_along(x, AXIS[side])
            if self.coordinates:
                x = _taken(x, basis, side)
                continue
            pair = (basis.mT, x) if side == "right" else (x, basis)
            x = jnp.matmul(*pair, precision=precision)
        return x

    def up(self, x: jax.Array, bases: Sequence[jax.Array], precision: Any) -> jax.Array:
        """Maps what was projected back to ``(*batch, fan_in, fan_out)``."""
        if not self.sides:
            flat = jnp.zeros((*self.batch, self.fan_in * self.fan_out), x.dtype)
            whole = jnp.put_along_axis(flat, bases[0], x, -1, inplace=False)
            return whole.reshape(*self.batch, self.fan_out, self.fan_in).mT
        for side, basis in zip(self.sides, bases, strict=True):
            if self.coordinates and self.rank == 0:
                shape = list(x.shape)
                shape[AXIS[side]] = self.size(side)
                x = jnp.zeros(shape, x.dtype)
                continue
            if self.coordinates:
                inside, places = _places(basis, self.size(side))
                x = jnp.where(_beside(inside, side), _taken(x, places, side), 0.0)
                continue
            pair = (basis, x) if side == "right" else (x, basis.mT)
            x = jnp.matmul(*pair, precision=precision)
        return x

    def outside(self, x: jax.Array, bases: Sequence[jax.Array]) -> jax.Array:
        """Sets what unit vectors span to exactly 0, and leaves the rest exactly as it is."""
        if not self.sides:
            flat = x.mT.reshape(*self.batch, -1)
            none = jnp.zeros(bases[0].shape, x.dtype)
            rest = jnp.put_along_axis(flat, bases[0], none, -1, inplace=False)
            return rest.reshape(*self.batch, self.fan_out, self.fan_in).mT
        if len(self.sides) == 1 and self.coordinates:
            inside, _ = _places(bases[0], self.size(self.sides[0]))
            return jnp.where(_beside(inside, self.sides[0]), 0.0, x)
        return jnp.where(self.up(jnp.ones(self.shape, x.dtype), bases, None) > 0, 0.0, x)

    def carried(
        self,
        x: jax.Array,
        old: Sequence[jax.Array],
        new: Sequence[jax.Array],
        squared: bool,
        precision: Any,
    ) -> jax.Array:
        """Takes coordinates of one basis to those of another; variances with squared cosines."""
        if not self.sides or self.coordinates:
            return self.down(self.up(x, old, precision), new, precision)
        for side, before, after in zip(self.sides, old, new, strict=True):
            cosines = jnp.matmul(after.mT, before, precision=precision)
            cosines = jnp.square(cosines) if squared else cosines
            pair = (cosines, x) if side == "right" else (x, cosines.mT)
            x = jnp.matmul(*pair, precision=precision)
        return x


def _taken(x: jax.Array, indices: jax.Array, side: str) -> jax.Array:
    """Rows or columns of ``(*batch, fan_in, fan_out)``."""
    take = lambda x, i: x[i] if side == "right" else x[:, i]  # noqa: E731
    for _ in x.shape[:-2]:
        take = jax.vmap(take)
    return take(x, indices)


def _places(indices: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Which of ``size`` places are indexed, and by which index."""
    found = indices[..., None, :] == jnp.arange(size)[:, None].reshape(
        (1,) * (indices.ndim - 1) + (size, 1)
    )
    numbers = jnp.arange(indices.shape[-1]).reshape((1,) * indices.ndim + indices.shape[-1:])
    return jnp.any(found, axis=-1), jnp.sum(jnp.where(found, numbers, 0), axis=-1)


def _beside(line: jax.Array, side: str) -> jax.Array:
    """Numbers of rows or columns with an axis for the others."""
    return line[..., :, None] if side == "right" else line[..., None, :]


Rank = int | float


def check_rank(rank: Rank, kind: str, side: Side, name: str = "rank") -> None:
    """Raises for a rank that fits no matrix, and for options that contradict each other."""
    check_static_number(name, rank)
    if isinstance(rank, bool) or not isinstance(rank, int | float):
        raise ValueError(f"{name}={rank!r} must be a number of directions or a share of them")
    if isinstance(rank, float) and not 0.0 <= rank <= 1.0:
        raise ValueError(
            f"{name}={rank!r} is a share of the projected side and must be in [0, 1]; an integer "
            "counts directions"
        )
    if isinstance(rank, int) and rank < 1:
        raise ValueError(
            f"{name}={rank!r} must be at least 1; the float 0.0 is a share, of no direction at all"
        )
    if kind == "randk" and isinstance(rank, int):
        raise ValueError(f"basis='randk' needs a share of the entries such as 0.25, not {rank!r}")
    own = _FORCED.get(kind)
    if side not in ("std", own) and (own or kind == "randk"):
        raise ValueError(f"basis={kind!r} has a side of its own; leave out side={side!r}")


def projectors(
    layout: MatrixLayout, rank: Rank, kind: str, side: Side, least: int = 1
) -> list[Projector]:
    """Returns how each part of a tree is projected.

    Raises:
      ValueError: a rank above the side of a matrix; names the leaf and the remedy.
    """
    side = _FORCED.get(kind, side)
    out: list[Projector] = []
    for path, view in zip(layout.paths, layout.views, strict=True):
        sides = () if kind == "randk" else sides_of(side, view.fan_out, view.fan_in)
        part = sum(1 for other in out if other.path == path)
        given = (path, part, view.batch_shape, view.fan_in, view.fan_out, sides)
        own = _rank_of(path, view, sides, rank, kind, least)
        out.append(Projector(*given, own, kind in COORDINATES))
    return out


def _rank_of(
    path: str, view: MatrixView, sides: tuple[str, ...], rank: Rank, kind: str, least: int
) -> int:
    sizes = [view.fan_in if side == "right" else view.fan_out for side in sides]
    whole = min(sizes) if sizes else view.fan_in * view.fan_out
    # A gradient has no more directions than its short side; drawn bases have as many as a side.
    most = min(whole, *view.matrix_shape) if kind in FROM_GRADIENT else whole
    if isinstance(rank, float):
        # As FRUGAL counts: coordinates are cut off, bases rounded half to even.
        cut = kind in ("columns", "rows", "randk")
        share = math.floor(rank * whole) if cut else round(rank * whole)
        return min(max(share, least if rank else 0), most)
    if rank > most and most:
        raise ValueError(
            f"leaf {path!r} is read as {view.fan_out} x {view.fan_in} (fan_out x fan_in), which "
            f"has no rank {rank}; give a rank of at most {most}, a share such as 0.25, or send "
            "the leaf elsewhere with roles or optkit.route"
        )
    return min(rank, most)


Draw = Callable[[str, str, tuple[int, ...], jax.Array], Any]
SIDES = get_args(Side)
KINDS = get_args(BasisKind)


def rank_of(path: str, view: MatrixView, rank: Rank) -> int:
    """Returns the rank of a subspace of a matrix's shorter side; refuses one that it has not."""
    sides = sides_of("std", view.fan_out, view.fan_in)
    return _rank_of(path, view, sides, rank, "svd", 1)
