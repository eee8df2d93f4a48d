"""The operation as Pallas kernels for GPUs, by Triton: one for the right factor, one for the rest.

Programs of the second have the columns of the weights in parallel. Each would meet the right factor
again, so that this is done before, and a number a row and rank goes through memory. Rows of a tile
come from whole groups or from one, so that what is generated serves all rows of its group.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from optkit.kernels.blocks import Blocks
from optkit.kernels.counters import APART, Counters, normals_at, stream
from optkit.kernels.implementation import Unserved

Factor = Callable[[str, int, jax.Array, Any], tuple[jax.Array, jax.Array]]


@dataclass(frozen=True)
class Tiles(Blocks):
    """How rows are cut; powers of 2, as Triton has them.

    Attributes:
      groups: of a tile.
      rows: of each group in a tile.
      depth: of the weights that are multiplied at a time.
    """

    groups: int
    rows: int
    depth: int

    @classmethod
    def of(cls, rows: int, itemsize: int, most: int = 64) -> "Tiles":
        """Returns the tiles for groups of some rows: little is filled up, and few are cut."""
        sizes = [1 << power for power in range(most.bit_length())]
        size = min(reversed(sizes), key=lambda each: -(-rows // each) * (each + 4))
        return cls(most // size, size, 128 // itemsize)


@dataclass(frozen=True)
class _Shape:
    """What is multiplied: groups of rows, ``(n, m)``, ranks."""

    groups: int
    rows: int
    n: int
    m: int
    rank: int


def perturbed_matmul(
    x: jax.Array,
    w: jax.Array,
    noise: Counters | tuple[jax.Array, jax.Array],
    scale: jax.Array,
    precision: Any = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """``base.perturbed_matmul``, the factors given or generated."""
    rank = noise.rank if isinstance(noise, Counters) else noise[0].shape[2]
    shape = _Shape(x.shape[0], x.shape[1], x.shape[2], w.shape[1], rank)
    tiles = Tiles.of(shape.rows, x.dtype.itemsize)
    sizes = [shape.groups * shape.rows * max(shape.n, shape.m), w.size]
    if max(sizes) >= 2**31:
        raise Unserved(f"{max(sizes):,} entries are more than 32-bit indices count")
    grid = (pl.cdiv(shape.groups, tiles.groups), pl.cdiv(shape.rows, tiles.rows))
    if isinstance(noise, Counters):
        words = noise.words()
        given, right = [words], [words]
    else:
        given, right = ([factor.reshape(-1)] for factor in noise)
    options: dict[str, Any] = {
        "compiler_params": plgpu.CompilerParams(num_warps=8, num_stages=3),
        "interpret": interpret,
    }
    shared = (tiles, shape, isinstance(noise, Counters))
    thin = pl.pallas_call(
        functools.partial(_thin, *shared),
        grid=grid,
        out_shape=jax.ShapeDtypeStruct((rank * shape.groups * shape.rows,), jnp.float32),
        **options,
    )(x.reshape(-1), scale.astype(jnp.float32).reshape(-1), *right)
    out = pl.pallas_call(
        functools.partial(_wide, *shared, precision),
        grid=(*grid, pl.cdiv(shape.m, 2 * APART)),
        out_shape=jax.ShapeDtypeStruct((shape.groups * shape.rows * shape.m,), x.dtype),
        **options,
    )(x.reshape(-1), w.reshape(-1), thin, *given)
    return out.reshape(shape.groups, shape.rows, shape.m)


class _Rows:
    """Which rows a program has; as many as a tile, beyond the ends of the array none."""

    def __init__(self, tiles: Tiles, shape: _Shape) -> None:
        self.tiles, self.shape = tiles, shape
        count = tiles.groups * tiles.rows
        place = jax.lax.broadcasted_iota(jnp.int32, (count,), 0)
        group = place // tiles.rows + pl.program_id(0) * tiles.groups
        row = place % tiles.rows + pl.program_id(1) * tiles.rows
        self.number = group * shape.rows + row
        self.inside = (group < shape.groups) & (row < shape.rows)
        groups = jax.lax.broadcasted_iota(jnp.int32, (tiles.groups,), 0)
        self.groups = groups + pl.program_id(0) * tiles.groups

    def load(self, ref: Any, first: Any, columns: int, width: int) -> jax.Array:
        """Some columns of these rows of an array of a width."""
        column = jax.lax.broadcasted_iota(jnp.int32, (columns,), 0) + first
        mask = self.inside[:, None] & (column < width)[None]
        at = self.number[:, None] * width + column[None]
        return plgpu.load(ref.at[at], mask=mask, other=0.0)

    def by_group(self, x: jax.Array) -> jax.Array:
        return x.reshape(self.tiles.groups, self.tiles.rows, *x.shape[1:])

    def factor(self, ref: Any, generated: bool) -> Factor:
        """How factors of these groups are had: 128 columns from a multiple of 256 on, and 128."""
        shape = self.shape
        lane = jax.lax.broadcasted_iota(jnp.int32, (APART,), 0)

        def made(side: str, k: int, first: Any, size: int) -> Any:
            words = [jax.lax.bitcast_convert_type(ref[n], jnp.uint32) for n in range(3)]
            place = jnp.broadcast_to((lane + (first >> 1))[None], (len(self.groups), APART))
            number = jnp.broadcast_to(self.groups[:, None], place.shape)
            return normals_at(words, number, place, stream(side, k))

        def held(side: str, k: int, first: Any, size: int) -> Any:
            def run(first: Any) -> jax.Array:
                column = lane + first
                at = (self.groups[:, None] * size + column[None]) * shape.rank + k
                mask = (self.groups < shape.groups)[:, None] & (column < size)[None]
                return plgpu.load(ref.at[at], mask=mask, other=0.0).astype(jnp.float32)

            return run(first), run(first + APART)

        return made if generated else held


def _thin(
    tiles: Tiles, shape: _Shape, generated: bool, x: Any, scale: Any, noise: Any, out: Any
) -> None:
    """The rows times the right factor and their scale, rank after rank."""
    rows = _Rows(tiles, shape)
    factor = rows.factor(noise, generated)

    def step(index: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        first = index * 2 * APART
        halves = [
            rows.by_group(rows.load(x, first + half, APART, shape.n).astype(jnp.float32))
            for half in (0, APART)
        ]
        more = []
        for k, total in enumerate(totals):
            for half, own in zip(halves, factor("b", k, first, shape.n), strict=True):
                total = total + jnp.sum(half * own[:, None, :], axis=2)
            more.append(total)
        return tuple(more)

    zeros = jnp.zeros((tiles.groups, tiles.rows), jnp.float32)
    totals = jax.lax.fori_loop(0, pl.cdiv(shape.n, 2 * APART), step, (zeros,) * shape.rank)
    each = plgpu.load(scale.at[rows.number], mask=rows.inside, other=0.0)
    for k, total in enumerate(totals):
        at = rows.number + k * shape.groups * shape.rows
        plgpu.store(out.at[at], total.reshape(each.shape) * each, mask=rows.inside)


def _wide(
    tiles: Tiles,
    shape: _Shape,
    generated: bool,
    precision: Any,
    x: Any,
    w: Any,
    thin: Any,
    noise: Any,
    out: Any,
) -> None:
    """The rows times 256 columns of the weights, and what the left factor adds."""
    rows = _Rows(tiles, shape)
    first = pl.program_id(2) * 2 * APART
    lane = jax.lax.broadcasted_iota(jnp.int32, (APART,), 0)
    columns = [lane + first, lane + first + APART]

    def step(index: jax.Array, totals: Any) -> Any:
        deep = jax.lax.broadcasted_iota(jnp.int32, (tiles.depth,), 0) + index * tiles.depth
        left = rows.load(x, index * tiles.depth, tiles.depth, shape.n)
        more = []
        for column, total in zip(columns, totals, strict=True):
            mask = (deep < shape.n)[:, None] & (column < shape.m)[None]
            held = plgpu.load(w.at[deep[:, None] * shape.m + column[None]], mask=mask, other=0.0)
            more.append(total + _dot(left, held, precision))
        return tuple(more)

    zeros = jnp.zeros((len(rows.number), APART), jnp.float32)
    totals = jax.lax.fori_loop(0, pl.cdiv(shape.n, tiles.depth), step, (zeros, zeros))
    totals = [rows.by_group(total) for total in totals]
    factor = rows.factor(noise, generated)
    for k in range(shape.rank):
        at = rows.number + k * shape.groups * shape.rows
        own = rows.by_group(plgpu.load(thin.at[at], mask=rows.inside, other=0.0))
        halves = factor("a", k, first, shape.m)
        totals = [
            total + own[:, :, None] * half[:, None, :]
            for total, half in zip(totals, halves, strict=True)
        ]
    for column, total in zip(columns, totals, strict=True):
        mask = rows.inside[:, None] & (column < shape.m)[None]
        at = rows.number[:, None] * shape.m + column[None]
        plgpu.store(out.at[at], total.reshape(at.shape).astype(out.dtype), mask=mask)


def _dot(x: jax.Array, y: jax.Array, precision: Any) -> jax.Array:
    """A product summed in float32."""
    return jnp.dot(x, y, precision=precision, preferred_element_type=jnp.float32)
