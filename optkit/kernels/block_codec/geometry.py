"""An array of any shape as rows that whole blocks are cut from, and what a kernel cannot serve."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from optkit.codecs.base import Codec, Shape
from optkit.codecs.blocks import in_rows
from optkit.codecs.table import TableCodec
from optkit.kernels.block_codec.sharded import why_not_split

# Entries beside each other in a vector register.
LANES = 128
# Longest block that a kernel holds; and how wide the rows are that a flat array is cut into.
MOST = 4096
WIDE = 1024


class Geometry(NamedTuple):
    """How the entries of an array lie in rows."""

    size: int  # entries of the array
    rows: int
    width: int  # entries of a row; the last block of a row may be short
    block: int
    bits: int

    @property
    def blocks(self) -> int:
        """Of a row."""
        return -(-self.width // self.block)

    @property
    def span(self) -> int:
        """Entries that a kernel takes at once: whole blocks, and codes that fill a register."""
        return math.lcm(self.block, LANES * 8 // self.bits)

    @property
    def is_short(self) -> bool:
        """Whether a block reaches beyond the entries of the array."""
        return self.width % self.block > 0 or self.rows * self.width > self.size

    def in_rows(self, x: jax.Array, width: int) -> jax.Array:
        """The array, its codes or its scales as ``(rows, width)``, filled up with 0."""
        flat = x.reshape(-1)
        if flat.size != self.rows * width:
            flat = jnp.pad(flat, (0, self.rows * width - flat.size))
        return flat.reshape(self.rows, width)

    def out_of_rows(self, x: jax.Array, shape: Shape) -> jax.Array:
        """Undoes ``in_rows``."""
        size = math.prod(shape)
        return (x if x.size == size else x.reshape(-1)[:size]).reshape(shape)

    def tiled(self, scale: jax.Array, columns: int) -> jax.Array:
        """Scales as ``(tiles, rows, blocks of a tile)`` for tiles of some columns."""
        each, tiles = columns // self.block, -(-self.width // columns)
        rows = self.in_rows(scale, self.blocks)
        rows = jnp.pad(rows, [(0, 0), (0, tiles * each - self.blocks)])
        return rows.reshape(self.rows, tiles, each).swapaxes(0, 1)

    def untiled(self, scale: jax.Array, shape: Shape) -> jax.Array:
        """Undoes ``tiled``."""
        rows = scale.swapaxes(0, 1).reshape(self.rows, -1)[:, : self.blocks]
        return self.out_of_rows(rows, shape)


def why_not(codecs: Sequence[Codec], shape: Shape, arrays: Sequence[jax.Array] = ()) -> str | None:
    """Returns why no kernel serves some codecs and a shape, with the numbers; None if one does.

    Args:
      codecs: all that moments of the shape are read and written by.
      shape: of the moments.
      arrays: those that go into the function.

    Returns:
      A clause for an error message, or None.

    Example:
      >>> from optkit.codecs import TableCodec
      >>> from optkit.kernels.block_codec import why_not
      >>> why_not([TableCodec(block=64)], (8, 256))
      'block=64 is not a multiple of 128 up to 4096'
    """
    size = math.prod(shape)
    for codec in codecs:
        if not isinstance(codec, TableCodec):
            return (
                f"{codec.name} is not a table: only optkit.codecs.TableCodec is served, such as "
                "dynamic8, dynamic4 and linear8"
            )
        if codec.is_random:
            return f"{codec.name} rounds at random: only rounding='nearest' is served"
        if codec.block % LANES or codec.block > MOST:
            return f"block={codec.block} is not a multiple of {LANES} up to {MOST}"
    table = [codec for codec in codecs if isinstance(codec, TableCodec)]
    if not table:
        return "nothing is stored"
    if len({(codec.block, codec.layout, codec.bits) for codec in table}) > 1:
        return "the codecs differ in block, layout or bits: " + ", ".join(c.name for c in table)
    first = table[0]
    if size == 0:
        return f"shape {shape} holds nothing"
    if geometry_of(first, shape).width * first.bits % 8:
        return f"rows of {shape[-1]} codes of {first.bits} bits are no whole bytes"
    for x in arrays:
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            return f"an operand is {x.dtype}: only float32 and bfloat16 are served"
    return why_not_split(table, shape, arrays[0]) if arrays else None


def geometry_of(codec: TableCodec, shape: Shape) -> Geometry:
    """Returns how an array of a shape lies in rows; ``why_not`` has been asked."""
    size, block = math.prod(shape), codec.block
    if in_rows(shape, block, codec.layout):
        return Geometry(size, size // shape[-1], shape[-1], block, codec.bits)
    count = -(-size // block)
    each = max(n for n in range(1, max(WIDE // block, 1) + 1) if count % n == 0)
    return Geometry(size, count // each, each * block, block, codec.bits)
