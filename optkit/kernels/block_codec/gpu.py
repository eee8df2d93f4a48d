"""The operation as a Pallas kernel for GPUs, by Triton: each block is read, worked on and stored.

Memory can be indexed here, so that tables are looked up where they lie and nothing is padded: what
is beyond the ends is masked. Triton's maximum leaves out what is not a number; scales are found as
the largest bit pattern, so that they do not hide it. Its division is approximate in the last bits:
on a device an entry midway between two codes may get the other one.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from optkit.codecs.base import Parts, Shape
from optkit.codecs.table import TableCodec
from optkit.kernels.block_codec.base import Arrays, Function
from optkit.kernels.block_codec.geometry import Geometry, geometry_of
from optkit.kernels.block_codec.lookup import same_sign, scale_of, tables
from optkit.kernels.implementation import Unserved

# Entries of a tile: those that the registers of 128 threads hold beside two moments.
TILE = 2048


def update_stored(
    function: Function,
    read: Sequence[TableCodec],
    write: Sequence[TableCodec],
    stored: Sequence[Mapping[str, jax.Array]],
    arrays: Arrays,
    scalars: Arrays,
    shape: Shape,
    reuse: Mapping[int, int],
    *,
    interpret: bool = False,
) -> tuple[list[jax.Array], list[Parts]]:
    """``base.update_stored`` for what ``why_not`` has nothing against."""
    form = geometry_of((*read, *write)[0], shape)
    if form.rows * form.width >= 2**31:
        raise Unserved(f"{form.size:,} entries are more than 32-bit indices count")
    lanes = pl.next_power_of_2(form.block)
    cut = (max(1, TILE // lanes), lanes)
    flat = [x.reshape(-1) for x in arrays]
    outputs, _ = jax.eval_shape(
        function,
        [jax.ShapeDtypeStruct(cut, jnp.float32)] * len(read),
        [jax.ShapeDtypeStruct(cut, x.dtype) for x in flat],
        list(scalars),
    )
    shapes = [codec.shapes(shape) for codec in write]
    flat_shapes = [
        jax.ShapeDtypeStruct((own[name].size,), own[name].dtype)
        for own in shapes
        for name in ("codes", "scale")
    ]
    first = len(read) + len(write) + len(scalars)
    # Codes and scales are stored where they were read.
    same = [i for i in range(len(read)) if read[: i + 1] == write[: i + 1]]
    aliases = {first + 2 * i + part: 2 * i + part for i in same for part in (0, 1)}
    for output, array in reuse.items():
        if outputs[output].dtype == flat[array].dtype:
            aliases[first + 2 * len(read) + array] = 2 * len(write) + output
    given = [jnp.asarray(tables(codec)).reshape(-1) for codec in (*read, *write)]
    given += [x.reshape(1) for x in scalars]
    given += [parts[name].reshape(-1) for parts in stored for name in ("codes", "scale")]
    out = pl.pallas_call(
        functools.partial(
            _kernel, function, read, write, form, cut, (len(scalars), len(flat), len(outputs))
        ),
        grid=(pl.cdiv(form.rows * form.blocks, cut[0]),),
        out_shape=flat_shapes + [jax.ShapeDtypeStruct((form.size,), x.dtype) for x in outputs],
        input_output_aliases=aliases,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
    )(*given, *flat)
    new = [
        {name: out[2 * i + part].reshape(own[name].shape)}
        for i, own in enumerate(shapes)
        for part, name in enumerate(("codes", "scale"))
    ]
    merged = [new[2 * i] | new[2 * i + 1] for i in range(len(write))]
    return [x.reshape(shape) for x in out[2 * len(write) :]], merged


class _Tile:
    """Where the entries of a tile are: a block in each row, more lanes than it has entries."""

    def __init__(self, form: Geometry, cut: tuple[int, int]) -> None:
        self.form, self.cut = form, cut
        self.number = self._blocks(1)[:, 0]
        self.at, self.inside = self._entries(1)

    def _blocks(self, lanes: int) -> jax.Array:
        row = jax.lax.broadcasted_iota(jnp.int32, (self.cut[0], lanes), 0)
        return row + pl.program_id(0) * self.cut[0]

    def _entries(self, step: int) -> tuple[jax.Array, jax.Array]:
        """Indices of every entry, or of every second one, and whether the array has them."""
        form, lanes = self.form, self.cut[1] // step
        number = self._blocks(lanes)
        lane = jax.lax.broadcasted_iota(jnp.int32, (self.cut[0], lanes), 1) * step
        row, block = number // form.blocks, number % form.blocks
        column = block * form.block + lane
        at = row * form.width + column
        own = (lane < form.block) & (column < form.width)
        return at, own & (at < form.size) & (number < form.rows * form.blocks)

    def load(self, ref: Any) -> jax.Array:
        return plgpu.load(ref.at[self.at], mask=self.inside, other=0)

    def store(self, ref: Any, x: jax.Array) -> None:
        plgpu.store(ref.at[self.at], x, mask=self.inside)

    def decode(self, codec: TableCodec, table: Any, codes: Any, scale: Any) -> jax.Array:
        """The moments, float32."""
        if self.form.bits == 4:
            held = plgpu.load(codes.at[self.at >> 1], mask=self.inside, other=0).astype(jnp.int32)
            code = jnp.where(self.at & 1 == 0, held >> 4, held & 15)
        else:
            code = self.load(codes).astype(jnp.int32)
        most = plgpu.load(scale.at[self.number], mask=self._is_block, other=0.0)
        return plgpu.load(table.at[code]) * most[:, None]

    def encode(self, codec: TableCodec, table: Any, x: jax.Array, codes: Any, scale: Any) -> None:
        """Stores what was worked out."""
        x = jnp.where(self.inside, x, 0.0)
        bits = jax.lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
        most = jax.lax.bitcast_convert_type(jnp.max(bits, axis=1, keepdims=True), jnp.float32)
        most = scale_of(codec, x, most)
        plgpu.store(scale.at[self.number], most.reshape(self.cut[0]), mask=self._is_block)
        code = _codes(codec, table, x / jnp.where(most == 0.0, 1.0, most))
        if self.form.bits == 8:
            self.store(codes, code.astype(jnp.uint8))
            return
        at, inside = self._entries(2)
        code = jnp.where(self.inside, jnp.where(self.at & 1 == 0, code << 4, code), 0)
        pairs = code.reshape(self.cut[0], self.cut[1] // 2, 2).sum(axis=2)
        plgpu.store(codes.at[at >> 1], pairs.astype(jnp.uint8), mask=inside)

    @property
    def _is_block(self) -> jax.Array:
        return self.number < self.form.rows * self.form.blocks


def _codes(codec: TableCodec, table: Any, y: jax.Array) -> jax.Array:
    """Counts the thresholds below numbers: those of the tree come behind 256 entries."""
    node = jnp.ones(y.shape, jnp.int32)
    for _ in range(codec.bits):
        threshold = plgpu.load(table.at[node + 256])
        above = y >= threshold if codec.ties == "upper" else y > threshold
        node = 2 * node + above.astype(jnp.int32)
    code = node - (1 << codec.bits)
    return same_sign(codec, y, code, plgpu.load(table.at[code])) if codec.keep_sign else code


def _kernel(
    function: Function,
    read: Sequence[TableCodec],
    write: Sequence[TableCodec],
    form: Geometry,
    cut: tuple[int, int],
    counts: tuple[int, int, int],
    *refs: Any,
) -> None:
    rest = iter(refs)

    def take(count: int) -> list[Any]:
        return list(itertools.islice(rest, count))

    read_tables, write_tables, numbers = take(len(read)), take(len(write)), take(counts[0])
    stored, arrays = take(2 * len(read)), take(counts[1])
    new, results = take(2 * len(write)), take(counts[2])
    tile = _Tile(form, cut)
    moments = [
        tile.decode(codec, table, stored[2 * i], stored[2 * i + 1])
        for i, (codec, table) in enumerate(zip(read, read_tables, strict=True))
    ]
    out, fresh = function(moments, [tile.load(x) for x in arrays], [x[0] for x in numbers])
    for ref, x in zip(results, out, strict=True):
        tile.store(ref, x)
    for i, (codec, table, x) in enumerate(zip(write, write_tables, fresh, strict=True)):
        tile.encode(codec, table, x, new[2 * i], new[2 * i + 1])
