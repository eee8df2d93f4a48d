"""The operation as a Pallas kernel for TPUs.

A step of the grid holds a tile of rows whole, and a tile of the weights' columns. With the first
columns the rows meet the right factor, on the vector unit: a column of numbers for each rank, which
stays on the chip. With all of them the rows meet the weights, on the matrix unit, and the left
factor is added before anything is written. Generated factors never leave the registers.

Rows of a group lie beside each other. Groups of few rows would leave registers empty, so that there
the groups themselves lie beside each other, and rows come from different ones.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optkit.kernels.blocks import LANES, ON_CHIP, Blocks, check_on_chip, cut, filled, rounded_up
from optkit.kernels.counters import APART, Counters, in_registers, normals_at, runs, stream

# Sublanes of a register of 16-bit numbers.
SUBLANES = 16
# Products of a tile: what the compiler unrolls into some thousand instructions.
_MOST_PRODUCTS = 2**29
_WEIGHTS_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Tiles(Blocks):
    """How an operation is cut.

    Attributes:
      groups: of a tile.
      rows: of each group in a tile.
      columns: of the weights in a tile.
    """

    groups: int
    rows: int
    columns: int

    multiples: ClassVar[Mapping[str, int]] = {"columns": LANES}

    @property
    def beside(self) -> bool:
        """Whether groups lie beside each other, and not the rows of a group."""
        return self.rows < SUBLANES

    def in_order(self, group: Any, row: Any) -> tuple[Any, Any]:
        """Returns what belongs to groups and to rows in the order of the kernel's axes."""
        return (row, group) if self.beside else (group, row)

    def on_chip(self, n: int, itemsize: int, rank: int) -> int:
        """Returns the bytes of a step: what comes and goes twice, and sums in float32."""
        size, wide = self.groups * self.rows, 2 * itemsize
        moved = wide * (size * (n + self.columns) + n * self.columns)
        sums = 4 * size * (3 * self.columns + LANES * (rank + 2))
        # The last two axes of an array fill registers.
        ranks = rank if self.beside else rounded_up(rank, SUBLANES // 2)
        return moved + sums + 8 * ranks * self.groups * (n + self.columns)

    @classmethod
    def of(cls, groups: int, rows: int, n: int, m: int, itemsize: int) -> "Tiles":
        """Returns the tiles for a shape."""
        # Numbers that are generated together stay together.
        run = LANES if m <= LANES else 2 * APART
        columns = max(run, min(1024, _WEIGHTS_BYTES // (n * itemsize)) // run * run)
        columns = rounded_up(-(-m // -(-m // columns)), run)  # tiles of like size
        most = max(2 * SUBLANES, min(256, _MOST_PRODUCTS // (n * columns)) // SUBLANES * SUBLANES)
        if rows < SUBLANES:
            each = max(SUBLANES, most // rows // SUBLANES * SUBLANES)
            return cls(min(each, rounded_up(groups, SUBLANES)), rows, columns)
        pieces = -(-rows // most)
        each = rounded_up(-(-rows // pieces), SUBLANES)
        return cls(min(groups, max(1, most // each)), each, columns)


def perturbed_matmul(
    x: jax.Array,
    w: jax.Array,
    noise: Counters | tuple[jax.Array, jax.Array],
    scale: jax.Array,
    precision: Any = None,
    *,
    interpret: bool = False,
    tiles: Tiles | None = None,
) -> jax.Array:
    """``base.perturbed_matmul``, the factors given or generated."""
    groups, rows, n = x.shape
    m = w.shape[1]
    width = rounded_up(n, LANES)
    tiles = tiles or Tiles.of(groups, rows, width, m, x.dtype.itemsize)
    at = (1, 0) if tiles.beside else (0, 1)  # axes of groups and rows

    def turned(x: jax.Array) -> jax.Array:
        return x.swapaxes(0, 1) if tiles.beside else x

    x_, s_ = (
        filled(turned(given), {at[0]: tiles.groups, at[1]: tiles.rows})
        for given in (filled(x, {2: LANES}), scale[..., None].astype(jnp.float32))
    )
    w_ = filled(w, {0: LANES, 1: tiles.columns})
    grid = (
        x_.shape[at[0]] // tiles.groups,
        x_.shape[at[1]] // tiles.rows,
        w_.shape[1] // tiles.columns,
    )
    tile = tiles.in_order(tiles.groups, tiles.rows)

    def where(i: Any, j: Any) -> tuple[Any, Any]:
        return tiles.in_order(i, j)

    rank = noise.rank if isinstance(noise, Counters) else noise[0].shape[2]
    given, specs = _noise(noise, tiles, width)
    needed = check_on_chip(
        "perturbed_matmul",
        tiles.on_chip(width, x.dtype.itemsize, 0 if isinstance(noise, Counters) else rank),
        "tpu",
    )
    out = pl.pallas_call(
        functools.partial(_kernel, tiles, rank, isinstance(noise, Counters), m, precision),
        grid=grid,
        in_specs=[
            pl.BlockSpec((*tile, width), lambda i, j, k: (*where(i, j), 0)),
            pl.BlockSpec((*tile, 1), lambda i, j, k: (*where(i, j), 0)),
            pl.BlockSpec((width, tiles.columns), lambda i, j, k: (0, k)),
            *specs,
        ],
        out_specs=pl.BlockSpec((*tile, tiles.columns), lambda i, j, k: (*where(i, j), k)),
        out_shape=jax.ShapeDtypeStruct((*x_.shape[:2], w_.shape[1]), x.dtype),
        scratch_shapes=[pltpu.VMEM((rank, *tile, 1), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=min(2 * needed + 2**23, ON_CHIP["tpu"]),
        ),
        interpret=interpret,
    )(x_, s_, w_, *given)
    return turned(cut(out, (*turned(scale).shape, m)))


def _noise(
    noise: Counters | tuple[jax.Array, jax.Array], tiles: Tiles, n: int
) -> tuple[list[jax.Array], list[pl.BlockSpec]]:
    """What the kernel makes the factors of: three words, or the right factor and the left one."""
    if isinstance(noise, Counters):
        return [noise.words()], [pl.BlockSpec(memory_space=pltpu.SMEM)]
    a, b = noise
    rank, arrays, specs = a.shape[2], [], []
    # Ranks first, or behind the groups.
    order, axis = ((2, 0, 1), 1) if tiles.beside else ((0, 2, 1), 0)
    for factor, size in ((b, n), (a, tiles.columns)):
        arrays.append(filled(factor.transpose(order), {axis: tiles.groups, 2: size}))

        def index(i: Any, j: Any, k: Any, moves: bool = factor is a) -> tuple[Any, Any, Any]:
            return (0, i, k * moves) if tiles.beside else (i, 0, k * moves)

        block = (rank, tiles.groups) if tiles.beside else (tiles.groups, rank)
        specs.append(pl.BlockSpec((*block, size), index))
    return arrays, specs


def _kernel(tiles: Tiles, rank: int, generated: bool, m: int, precision: Any, *refs: Any) -> None:
    x, scale, w, *noise, out, thin = refs
    factor = _generated(tiles, noise[0]) if generated else _given(tiles, noise)
    column = pl.program_id(2)

    def first() -> None:
        _thin(x, scale, thin, factor, rank)

    # One tile of columns needs no branch.
    if w.shape[1] >= m:
        first()
    else:
        pl.when(column == 0)(first)
    _wide(x, w, out, thin, factor, rank, precision, column * tiles.columns)


def _thin(x: Any, scale: Any, thin: Any, factor: Any, rank: int) -> None:
    """The rows times the right factor, ``(rows, groups, 1)`` or the other way."""
    for k in range(rank):
        total = jnp.zeros((*x.shape[:2], 1), jnp.float32)
        for start, size in runs(x.shape[2]):
            cut_ = x[:, :, start : start + size].astype(jnp.float32)
            product = cut_ * factor("b", k, start, 0, size)
            total = total + jnp.sum(product, axis=2, keepdims=True)
        thin[k] = total * scale[...]


def _wide(
    x: Any, w: Any, out: Any, thin: Any, factor: Any, rank: int, precision: Any, first: Any
) -> None:
    """The rows times the weights, and what the left factor adds."""
    rows = x[...].reshape(-1, x.shape[2])
    shared = jnp.dot(rows, w[...], preferred_element_type=jnp.float32, precision=precision)
    shared = shared.reshape(out.shape)
    for start, size in runs(out.shape[2]):
        total = shared[:, :, start : start + size]
        for k in range(rank):
            total = total + thin[k] * factor("a", k, start, first, size)
        out[:, :, start : start + size] = total.astype(out.dtype)


def _given(tiles: Tiles, refs: Any) -> Any:
    held = dict(zip("ba", refs, strict=True))

    def factor(side: str, k: int, start: int, first: Any, size: int) -> jax.Array:
        ref = held[side]
        if tiles.beside:
            return ref[k : k + 1, :, start : start + size].astype(jnp.float32)
        return ref[:, k : k + 1, start : start + size].astype(jnp.float32)

    return factor


def _generated(tiles: Tiles, words: Any) -> Any:
    groups, first_group = tiles.groups, pl.program_id(0) * tiles.groups
    held = in_registers(words)

    def factor(side: str, k: int, start: int, first: Any, size: int) -> jax.Array:
        shape = (groups, APART)
        row, lane = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
        place = lane + ((start + first) >> 1)
        near, far = normals_at(held, row + first_group, place, stream(side, k))
        made = near if size <= APART else jnp.concatenate([near, far], axis=1)
        return made[None] if tiles.beside else made[:, None]

    return factor
