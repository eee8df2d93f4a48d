"""The subspaces of a tree's matrices: where they come from, when they change, what is stored."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optkit.linalg.bases import (
    leading_basis,
    random_basis,
    randomized_basis,
    tracked_basis,
)
from optkit.transforms.low_rank.projection import (
    FROM_GRADIENT,
    BasisKind,
    Draw,
    Projector,
    Rank,
    Side,
    projectors,
    sides_of,
)
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, map_groups
from optkit.tree.sharding import place_statistic, zeros_beside

Bases = list[tuple[jax.Array, ...]]  # of each part, one basis a projected side


def branch(
    due: jax.Array, then: Callable[..., Any], otherwise: Callable[..., Any], *of: Any
) -> Any:
    """``lax.cond`` that runs as Python where the answer is known: an eager one compiles anew."""
    if isinstance(due, jax.core.Tracer):
        return jax.lax.cond(due, then, otherwise, *of)
    return then(*of) if bool(due) else otherwise(*of)


@dataclass(frozen=True)
class Subspace:
    """What a user asked for; the same for all leaves."""

    rank: Rank
    kind: BasisKind
    side: Side
    refresh_every: int | jax.Array
    stagger: bool
    key: int | jax.Array
    draw: Draw | None
    dims: Dims
    roles: Sequence[RuleLike]
    state_dtype: Any
    precision: Any
    group_bytes: int | None
    least: int = 1

    @property
    def from_gradient(self) -> bool:
        """Whether a basis is computed from the gradient, and so has to be kept."""
        return self.draw is None and self.kind in FROM_GRADIENT

    @property
    def stored(self) -> bool:
        """Whether bases lie in the state: others are drawn anew, from the same key, every step.

        Random entries are too many to be sorted at every step.
        """
        return self.from_gradient or (self.draw is None and self.kind == "randk")

    def of(self, tree: PyTree) -> "Subspaces":
        """Returns the subspaces of a tree of matrices."""
        layout = MatrixLayout(tree, self.dims, self.roles)
        return Subspaces(
            self, layout, projectors(layout, self.rank, self.kind, self.side, self.least)
        )


@dataclass(frozen=True)
class Subspaces:
    """Those of one tree."""

    asked: Subspace
    layout: MatrixLayout
    parts: list[Projector]

    def split(self, tree: PyTree) -> list[jax.Array]:
        """Returns the parts of a tree as ``(*batch, fan_in, fan_out)``."""
        return [x.mT for x in self.layout.split(tree, "out")]

    def merge(self, matrices: Sequence[jax.Array]) -> PyTree:
        """Undoes ``split``."""
        return self.layout.merge([x.mT for x in matrices], "out")

    # When.

    def _phase(self, index: int) -> int | jax.Array:
        """How many steps before the others a part has its turn."""
        spread = self.asked.stagger and len(self.parts) > 0
        return index * self.asked.refresh_every // len(self.parts) if spread else 0

    def period(self, index: int, count: jax.Array) -> jax.Array:
        """Number of the basis that a part has, from 0."""
        return (count + self._phase(index)) // self.asked.refresh_every

    def due(self, index: int, count: jax.Array) -> jax.Array:
        """Whether a part's basis changes at this step."""
        return (count + self._phase(index)) % self.asked.refresh_every == 0

    # From where.

    def _drawn(self, index: int, period: jax.Array) -> tuple[jax.Array, ...]:
        """The basis of a period, from the key or from the user."""
        asked, part = self.asked, self.parts[index]
        names = part.sides or ("entries",)
        if asked.draw is not None:
            given = [
                self._given(part, name, shape, asked.draw(part.path, name, shape, period))
                for name, shape in zip(names, part.basis_shapes, strict=True)
            ]
            return tuple(given)
        seed = asked.key
        key = seed if isinstance(seed, jax.Array) else jax.random.key(int(seed))
        key = jax.random.fold_in(key, zlib.crc32(part.path.encode()))
        key = jax.random.fold_in(jax.random.fold_in(key, part.part), period)
        if asked.kind == "randk":
            return (_some_of(key, part.fan_in * part.fan_out, part),)
        keys = jax.random.split(key, len(names))
        if part.coordinates:
            sizes = map(part.size, part.sides)
            return tuple(_some_of(k, n, part) for k, n in zip(keys, sizes, strict=True))
        kind = "orthonormal" if asked.kind in FROM_GRADIENT else asked.kind
        pairs = zip(keys, part.basis_shapes, strict=True)
        return tuple(random_basis(own, shape, kind) for own, shape in pairs)  # type: ignore[arg-type]

    def _given(self, part: Projector, name: str, shape: tuple[int, ...], value: Any) -> jax.Array:
        value = jnp.asarray(value)
        if part.coordinates and not jnp.issubdtype(value.dtype, jnp.integer):
            value = jnp.argmax(value, axis=-2)  # unit vectors
        if value.shape != shape:
            raise ValueError(
                f"draw gave leaf {part.path!r} (side {name!r}) shape {value.shape}; needed is "
                f"{shape}: (*batch, {'indices' if part.coordinates else 'side, rank'})"
            )
        return value.astype(jnp.int32 if part.coordinates else jnp.float32)

    # What is stored.

    def init(self, params: PyTree) -> tuple[PyTree, ...]:
        """Returns the stored bases: a tree a projected side, or none where bases are drawn.

        Zeros stand for a basis that waits for the first gradient that is not zero.
        """
        if not self.asked.stored:
            return ()
        leaves = self.leaves(params)
        columns: list[list[Any]] = [[] for _ in range(self._sides)]
        for index, part in enumerate(self.parts):
            start: tuple[Any, ...] = (None,) * len(part.basis_shapes)
            if self.asked.stagger or self.asked.kind == "randk":
                start = self._drawn(index, jnp.zeros((), jnp.int32))
            for column, shape, own in zip(columns, part.basis_shapes, start, strict=True):
                dtype = jnp.int32 if not part.sides else self._dtype(leaves[index])
                zero = zeros_beside(leaves[index], shape, dtype)
                column.append(zero if own is None else (zero + own.astype(dtype)))
        return tuple(self.layout.pack(column) for column in columns)

    @property
    def _sides(self) -> int:
        return 2 if self.asked.side == "full" else 1

    def _dtype(self, leaf: Any) -> Any:
        wanted = self.asked.state_dtype
        return jnp.promote_types(leaf.dtype, jnp.float32) if wanted is None else wanted

    def leaves(self, tree: PyTree) -> list[Any]:
        """Returns the leaf of each part, for its dtype and its place."""
        held = self.layout.structure.flatten_up_to(tree)
        found = dict(zip(dict.fromkeys(self.layout.paths), held, strict=True))
        return [found[part.path] for part in self.parts]

    def unpack(self, stored: tuple[PyTree, ...]) -> Bases:
        """Returns the stored bases of each part."""
        columns = [self.layout.unpack(tree) for tree in stored]
        return list(zip(*columns, strict=True)) if columns else [() for _ in self.parts]

    def pack(self, bases: Bases) -> tuple[PyTree, ...]:
        """Undoes ``unpack``."""
        if not self.asked.stored:
            return ()
        if not bases:
            return tuple(self.layout.pack([]) for _ in range(self._sides))
        return tuple(self.layout.pack(column) for column in zip(*bases, strict=True))

    def at(
        self, stored: tuple[PyTree, ...], matrices: Sequence[jax.Array], count: jax.Array
    ) -> tuple[Bases, Bases]:
        """Returns the bases before this step, as far as they are needed, and those in force."""
        if not self.asked.stored:
            return [], self._drawn_at(matrices, count)
        old = self.unpack(stored)
        if self.asked.kind == "randk":
            return old, self._redrawn(old, count)
        return old, self._refreshed(old, matrices, count)

    def before(self, matrices: Sequence[jax.Array], count: jax.Array) -> Bases:
        """Returns the drawn bases of the last step's period."""
        return self._drawn_at(matrices, jnp.maximum(count - 1, 0))

    def _drawn_at(self, matrices: Sequence[jax.Array], count: jax.Array) -> Bases:
        return [
            tuple(place_statistic(basis, x) for basis in self._drawn(i, self.period(i, count)))
            for i, x in enumerate(matrices)
        ]

    def _redrawn(self, old: Bases, count: jax.Array) -> Bases:
        new = []
        for index, own in enumerate(old):
            again = lambda _, index=index: self._drawn(index, self.period(index, count))  # noqa: E731
            new.append(branch(self.due(index, count), again, lambda own: own, own))
        return new

    def _refreshed(self, old: Bases, matrices: Sequence[jax.Array], count: jax.Array) -> Bases:
        """Bases from the gradient, of the parts whose turn it is or that have none yet."""
        if not self.parts:
            return old
        dues = [
            jnp.broadcast_to(self.due(i, count) & (self.asked.kind != "online"), part.batch)
            for i, part in enumerate(self.parts)
        ]
        unset = [_is_unset(own[0]) for own in old]
        waiting = _any(unset)

        def ends(_: Any) -> jax.Array:
            pairs = zip(unset, matrices, strict=True)
            return _any([u & jnp.any(x != 0, axis=(-2, -1)) for u, x in pairs])

        ready = branch(waiting, ends, lambda _: jnp.zeros((), bool), waiting)
        takes = [due | missing for due, missing in zip(dues, unset, strict=True)]
        key = jax.random.key(0) if isinstance(self.asked.key, int) else self.asked.key
        key = jax.random.fold_in(key, count)

        def work(matrices: Any, old: Any, takes: Any) -> Bases:
            return self._work(matrices, old, takes, key)

        keep = lambda matrices, old, takes: old  # noqa: E731
        now = _any(dues) | ready
        if not self.asked.stagger:
            return branch(now, work, keep, list(matrices), old, takes)
        out: Bases = []
        for x, own, take in zip(matrices, old, takes, strict=True):
            alone = lambda x, own, take: self._work([x], [own], [take], key)[0]  # noqa: E731
            out.append(branch(jnp.any(take), alone, lambda x, own, take: own, x, own, take))
        return out

    def _work(
        self, matrices: list[jax.Array], old: Bases, takes: list[jax.Array], key: jax.Array
    ) -> Bases:
        wide = [tuple(b.astype(x.dtype) for b in own) for own, x in zip(old, matrices, strict=True)]
        columns = [list(column) for column in zip(*wide, strict=True)]

        def function(x: jax.Array, take: jax.Array, *held: jax.Array) -> tuple[jax.Array, ...]:
            sides = sides_of(self.asked.side, x.shape[-1], x.shape[-2])
            # Of zeros there is no subspace: the old one stays.
            use = (take & jnp.any(x != 0, axis=(-2, -1)))[..., None, None]
            pairs = zip(sides, held, strict=True)
            return tuple(jnp.where(use, self._computed(x, s, b, key), b) for s, b in pairs)

        done = map_groups(function, matrices, takes, *columns, group_bytes=self.asked.group_bytes)
        return [
            tuple(place_statistic(new.astype(b.dtype), x) for new, b in zip(got, own, strict=True))
            for got, own, x in zip(done, old, matrices, strict=True)
        ]

    def _computed(self, x: jax.Array, side: str, held: jax.Array, key: jax.Array) -> jax.Array:
        if x.size == 0 or held.size == 0:
            return held
        x, rank = (x if side == "right" else x.mT), held.shape[-1]
        if self.asked.kind == "randomized_svd":
            return randomized_basis(x, rank, key).astype(held.dtype)
        if self.asked.kind == "power_iteration":
            # A column of zeros would stay one.
            lost = jnp.all(held == 0, axis=-2, keepdims=True)
            start = jnp.where(lost, random_basis(key, held.shape).astype(held.dtype), held)
            return tracked_basis(x, start).astype(held.dtype)
        return leading_basis(x, rank).astype(held.dtype)


def _any(flags: Sequence[jax.Array]) -> jax.Array:
    out = jnp.zeros((), bool)
    for flag in flags:
        out = out | jnp.any(flag)
    return out


def _is_unset(basis: jax.Array) -> jax.Array:
    """Whether a basis waits for its first gradient; one that is set has a column that is not 0."""
    return ~jnp.any(basis[..., :1] != 0, axis=(-2, -1)) & (basis.size > 0)


def _some_of(key: jax.Array, size: int, part: Projector) -> jax.Array:
    """Different indices below ``size``, as many as the rank, for each matrix."""
    draw: Callable[[jax.Array], jax.Array] = lambda k: jax.random.permutation(k, size)  # noqa: E731
    keys = jax.random.split(key, part.batch) if part.batch else key
    for _ in part.batch:
        draw = jax.vmap(draw)
    return draw(keys)[..., : part.rank].astype(jnp.int32)
