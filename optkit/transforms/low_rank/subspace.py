"""The subspaces of a tree's matrices: where they come from, when they change, what is stored."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.bases import random_basis
from optkit.transforms.low_rank.lazy import LazyRefreshState, Memory, fresh_memory
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.projection import FROM_GRADIENT, Projector, projectors
from optkit.transforms.low_rank.stored import coded_zeros, read_basis, write_basis
from optkit.tree import MatrixLayout, PyTree
from optkit.tree.sharding import place_statistic, zeros_beside

Bases = list[tuple[jax.Array, ...]]  # of each part, one basis a projected side


class Held(NamedTuple):
    """What one part keeps from step to step."""

    basis: tuple[Any, ...]  # one a projected side, an array or what a codec stored
    memory: Memory | None  # of lazy refreshes


@dataclass(frozen=True)
class Subspaces:
    """Those of one tree."""

    asked: Subspace
    layout: MatrixLayout
    parts: list[Projector]

    @staticmethod
    def of(tree: PyTree, asked: Subspace) -> "Subspaces":
        """Reads a tree of matrices."""
        layout = MatrixLayout(tree, asked.dims, asked.roles)
        parts = projectors(layout, asked.rank, asked.kind, asked.side, asked.least)
        return Subspaces(asked, layout, parts)

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

    def due(self, index: int, count: jax.Array, interval: jax.Array | None = None) -> jax.Array:
        """Whether a part's basis changes at this step, by an interval of its own if it has one."""
        every = self.asked.refresh_every if interval is None else interval
        return (count + self._phase(index)) % every == 0

    # From where.

    def drawn(self, index: int, period: jax.Array) -> tuple[jax.Array, ...]:
        """The basis of a period, from the key or from the user."""
        asked, part = self.asked, self.parts[index]
        names = part.sides or ("entries",)
        if asked.draw is not None:
            given = [
                self._given(part, name, shape, asked.draw(part.path, name, shape, period))
                for name, shape in zip(names, part.basis_shapes, strict=True)
            ]
            return tuple(given)
        key = jax.random.fold_in(asked.random, zlib.crc32(part.path.encode()))
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

    def init(self, params: PyTree) -> tuple[tuple[PyTree, ...], PyTree]:
        """Returns the stored bases, a tree a projected side or none, and what refreshes remember.

        Zeros stand for a basis that waits for the first gradient that is not zero.
        """
        asked = self.asked
        held = []
        for index, (part, leaf) in enumerate(zip(self.parts, self.leaves(params), strict=True)):
            start: tuple[Any, ...] = (None,) * len(part.basis_shapes)
            if asked.stagger or asked.kind == "randk":
                start = self.drawn(index, jnp.zeros((), jnp.int32))
            basis = self._fresh(part, leaf, start) if asked.stored else ()
            memory = None
            if asked.lazy is not None:
                coded = asked.codec is not None
                memory = fresh_memory(asked.lazy, part, leaf, asked.refresh_every, coded)
            held.append(Held(basis, memory))
        return self.pack(held)

    def _fresh(self, part: Projector, leaf: Any, start: tuple[Any, ...]) -> tuple[Any, ...]:
        out: list[Any] = []
        codec, wanted = self.asked.codec, self.asked.stored_as
        dtype = jnp.promote_types(leaf.dtype, jnp.float32) if wanted is None else wanted
        for side, shape, own in zip(part.sides or ("",), part.basis_shapes, start, strict=True):
            if codec is not None:
                zeros = coded_zeros(codec, part, side, leaf)
                out.append(zeros if own is None else write_basis(codec, part, side, own))
                continue
            zero = zeros_beside(leaf, shape, dtype if part.sides else jnp.int32)
            out.append(zero if own is None else (zero + own.astype(zero.dtype)))
        return tuple(out)

    def leaves(self, tree: PyTree) -> list[Any]:
        """Returns the leaf of each part, for its dtype and its place."""
        held = self.layout.structure.flatten_up_to(tree)
        found = dict(zip(dict.fromkeys(self.layout.paths), held, strict=True))
        return [found[part.path] for part in self.parts]

    def unpack(self, stored: tuple[PyTree, ...], lazy: PyTree) -> "list[Held]":
        """Returns what each part has kept."""
        columns = [self.layout.unpack(tree) for tree in stored]
        bases = list(zip(*columns, strict=True)) if columns else [() for _ in self.parts]
        if self.asked.lazy is None:
            return [Held(own, None) for own in bases]
        none = [None] * len(bases)
        fields = [
            none if isinstance(tree, tuple) and not tree else self.layout.unpack(tree)
            for tree in lazy
        ]
        memories = [Memory(*own) for own in zip(*fields, strict=True)]
        return [Held(own, memory) for own, memory in zip(bases, memories, strict=True)]

    def pack(self, held: "Sequence[Held]") -> tuple[tuple[PyTree, ...], PyTree]:
        """Undoes ``unpack``."""
        trees: tuple[PyTree, ...] = ()
        if self.asked.stored:
            sides = range(2 if self.asked.side == "full" else 1)
            trees = tuple(self.layout.pack([own.basis[side] for own in held]) for side in sides)
        if self.asked.lazy is None:
            return trees, ()
        fields = [
            self.layout.pack([own.memory[i] for own in held if own.memory is not None])
            for i in range(len(Memory._fields))
        ]
        if self.asked.codec is None:
            fields[-1] = ()
        return trees, LazyRefreshState(*fields)

    def read(
        self,
        held: "Sequence[Held]",
        matrices: Sequence[jax.Array],
        parts: Sequence[Projector] | None = None,
    ) -> Bases:
        """Returns the stored bases as arrays, of all parts or of some."""
        codec = self.asked.codec
        if codec is None:
            return [own.basis for own in held]
        triples = zip(self.parts if parts is None else parts, held, matrices, strict=True)
        return [
            tuple(
                read_basis(codec, part, side, node, x)
                for side, node in zip(part.sides, own.basis, strict=True)
            )
            for part, own, x in triples
        ]

    def drawn_at(self, matrices: Sequence[jax.Array], count: jax.Array) -> Bases:
        """Returns the drawn bases in force."""
        return [
            tuple(place_statistic(basis, x) for basis in self.drawn(i, self.period(i, count)))
            for i, x in enumerate(matrices)
        ]


def _some_of(key: jax.Array, size: int, part: Projector) -> jax.Array:
    """Different indices below ``size``, as many as the rank, for each matrix."""
    draw: Callable[[jax.Array], jax.Array] = lambda k: jax.random.permutation(k, size)  # noqa: E731
    keys = jax.random.split(key, part.batch) if part.batch else key
    for _ in part.batch:
        draw = jax.vmap(draw)
    return draw(keys)[..., : part.rank].astype(jnp.int32)
