"""The operation as a Pallas kernel for TPUs.

A tile of the sum stays on the chip while the grid goes through the pairs, and within them through
the ranks. A step makes the left factors of its pairs, ``(pairs, columns)``, and then the right
ones, ``(rows, pairs)``, 256 rows at a time, each of which meets the left ones on the matrix unit
while the next numbers are made on the vector unit. Both are made in the order in which they are
multiplied. Tiles are as large as fit: those in a row of tiles make the same right factors, those
in a column the same left ones. Nothing but key, weights and sum goes through memory.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optkit.kernels.blocks import LANES, ON_CHIP, Blocks, check_on_chip, filled, rounded_up
from optkit.kernels.counters import APART, in_registers, normals_at, signs_of, stream
from optkit.kernels.implementation import Unserved

# Entries of a tile of the sum: 16 MiB, which are held twice.
_MOST_ENTRIES = 2**22


@dataclass(frozen=True)
class Tiles(Blocks):
    """How an operation is cut.

    Attributes:
      rows: of a tile of the sum.
      columns: of a tile of the sum.
      pairs: whose factors live together.
    """

    rows: int
    columns: int
    pairs: int

    multiples: ClassVar[Mapping[str, int]] = {"rows": APART, "columns": APART, "pairs": LANES}

    def runs(self) -> tuple[int, int]:
        """Returns in how many passes rows and columns are made."""
        return -(-self.rows // (2 * APART)), -(-self.columns // (2 * APART))

    def grid(self, pairs: int, n: int, m: int, rank: int) -> tuple[int, int, int, int]:
        """Returns the grid: tiles of rows, of columns, of pairs, and ranks."""
        return -(-n // self.rows), -(-m // self.columns), -(-pairs // self.pairs), rank

    def on_chip(self) -> int:
        """Returns the bytes of a step: the tile twice, factors, a product, what is generated."""
        made = 8 * self.pairs * 2 * APART
        return 4 * (
            2 * self.rows * self.columns
            + (self.pairs + 2 * APART) * self.columns
            + 2 * self.pairs
            + made
        )

    def check(self, n: int, m: int) -> None:
        """Raises where numbers that are generated together come into different tiles."""
        for size, tile in ((n, self.rows), (m, self.columns)):
            if size > tile and tile % (2 * APART):
                raise Unserved(f"an axis of {size} in tiles of {tile}: no multiples of {2 * APART}")

    @classmethod
    def of(cls, pairs: int, n: int, m: int) -> "Tiles":
        """Returns the tiles for a shape: those of which fewest numbers have to be made.

        Example:
          >>> Tiles.of(4096, 1024, 1024), Tiles.of(64, 4096, 300)
          (Tiles(rows=1024, columns=1024, pairs=256), Tiles(rows=4096, columns=512, pairs=128))
        """

        def tiles(size: int, count: int) -> int:
            return APART if size <= APART else rounded_up(-(-size // count), 2 * APART)

        def made(rows: int, columns: int) -> int:
            return -(-n // rows) * -(-m // columns) * (rows + columns)

        choice = []
        for count in range(1, -(-n // (2 * APART)) + 1):
            rows = tiles(n, count)
            most = _MOST_ENTRIES // rows // (2 * APART) * (2 * APART)
            if most:
                choice.append((rows, tiles(m, -(-m // most))))
        rows, columns = min(choice, key=lambda sizes: made(*sizes))
        return cls(rows, columns, min(2 * LANES, rounded_up(pairs, LANES)))


def population_update(
    weights: jax.Array,
    words: jax.Array,
    *,
    shape: tuple[int, int],
    rank: int,
    signs: bool = False,
    precision: Any = None,
    interpret: bool = False,
    tiles: Tiles | None = None,
    unroll: tuple[int, int] = (1, 1),
) -> jax.Array:
    """``base.population_update`` of the counters that ``words`` are, ``Counters.words()``.

    ``unroll``: passes over rows and over columns in a body of their loops.
    """
    pairs = weights.shape[0]
    tiles = tiles or Tiles.of(pairs, *shape)
    tiles.check(*shape)
    needed = check_on_chip("population_update", tiles.on_chip(), "tpu")
    return pl.pallas_call(
        functools.partial(_kernel, tiles, signs, precision, unroll),
        grid=tiles.grid(pairs, *shape, rank),
        in_specs=[
            pl.BlockSpec(memory_space=pltpu.SMEM),
            pl.BlockSpec((1, tiles.pairs), lambda i, j, k, r: (0, k)),
        ],
        out_specs=pl.BlockSpec((tiles.rows, tiles.columns), lambda i, j, k, r: (i, j)),
        out_shape=jax.ShapeDtypeStruct(shape, jnp.float32),
        scratch_shapes=[pltpu.VMEM((tiles.pairs, tiles.columns), jnp.float32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=min(2 * needed + 2**23, ON_CHIP["tpu"]),
        ),
        interpret=interpret,
        # Pairs that are not there have no weight.
    )(words, filled(weights.reshape(1, -1), {1: tiles.pairs}))


def _kernel(tiles: Tiles, signs: bool, precision: Any, unroll: tuple[int, int], *refs: Any) -> None:
    words, weights, out, a = refs
    i, j, k, rank = (pl.program_id(axis) for axis in range(4))
    held = in_registers(words)
    rows, columns = tiles.runs()

    def factor(side: str, first: Any, axis: int) -> tuple[jax.Array, jax.Array]:
        """Columns of these pairs from ``first`` on, and those 128 on; pairs along ``axis``."""
        shape = (tiles.pairs, APART) if axis == 0 else (APART, tiles.pairs)
        number, place = (jax.lax.broadcasted_iota(jnp.int32, shape, n) for n in (axis, 1 - axis))
        number, place = number + k * tiles.pairs, place + (first >> 1)
        near, far = normals_at(held, number, place, stream(side, rank))
        return (signs_of(near), signs_of(far)) if signs else (near, far)

    @pl.when((k == 0) & (rank == 0))
    def _() -> None:
        def clear(run: Any, _: None) -> None:
            size = min(tiles.rows, 2 * APART)
            out[_at(run, size), :] = jnp.zeros((size, tiles.columns), jnp.float32)

        jax.lax.fori_loop(0, rows, clear, None)

    def left(run: Any, _: None) -> None:
        first = run * (2 * APART)
        for half, made in enumerate(factor("a", first + j * tiles.columns, 0)):
            if half * APART < tiles.columns:
                a[:, _at(2 * run + half, APART)] = made

    def right(run: Any, _: None) -> None:
        first = run * (2 * APART)
        halves = factor("b", first + i * tiles.rows, 1)
        size = min(tiles.rows, 2 * APART)
        b = (halves[0] if size == APART else jnp.concatenate(halves, axis=0)) * weights[...]
        product = jnp.dot(b, a[...], precision=precision, preferred_element_type=jnp.float32)
        out[_at(run, size), :] += product

    jax.lax.fori_loop(0, columns, left, None, unroll=unroll[1])
    jax.lax.fori_loop(0, rows, right, None, unroll=unroll[0])


def _at(index: Any, size: int) -> Any:
    """Block ``index`` of an axis, as the compiler knows it to start at a register."""
    return pl.ds(pl.multiple_of(index * size, size), size)
