"""The operation as a Pallas kernel for TPUs: a tile is read, worked on and stored in one pass."""

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optkit.codecs.base import Parts, Shape
from optkit.codecs.blocks import from_bits, magnitude_bits
from optkit.codecs.table import TableCodec
from optkit.kernels.block_codec.base import Arrays, Function
from optkit.kernels.block_codec.geometry import LANES, WIDE, Geometry, geometry_of
from optkit.kernels.block_codec.lookup import (
    codes_of,
    each,
    entries_of,
    same_sign,
    scale_of,
    tables,
)

# Rows of a tile: those of a register of bytes.
ROWS = 32


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
    columns = columns_of(form)
    flat = [form.in_rows(x, form.width) for x in arrays]
    stride = form.width * form.bits // 8
    cut = (ROWS, form.span)
    like = [jax.ShapeDtypeStruct(cut, jnp.float32)] * len(read)
    outputs, _ = jax.eval_shape(
        function, like, [jax.ShapeDtypeStruct(cut, x.dtype) for x in flat], list(scalars)
    )
    whole = pl.BlockSpec((ROWS, columns), lambda i, j: (i, j))
    codes = pl.BlockSpec((ROWS, columns * form.bits // 8), lambda i, j: (i, j))
    scale = pl.BlockSpec((None, ROWS, columns // form.block), lambda i, j: (j, i, 0))
    table = pl.BlockSpec((4, LANES), lambda i, j: (0, 0))
    number = pl.BlockSpec(memory_space=pltpu.SMEM)
    grid = (pl.cdiv(form.rows, ROWS), pl.cdiv(form.width, columns))
    scales = jax.ShapeDtypeStruct((grid[1], form.rows, columns // form.block), jnp.float32)
    first = len(read) + len(write) + len(scalars)
    # Codes are stored where they were read.
    aliases = {first + 2 * i: 2 * i for i in range(len(read)) if read[: i + 1] == write[: i + 1]}
    for output, array in reuse.items():
        if outputs[output].dtype == flat[array].dtype:
            aliases[first + 2 * len(read) + array] = 2 * len(write) + output
    call = pl.pallas_call(
        functools.partial(
            _kernel, function, read, write, form, len(scalars), len(flat), len(outputs)
        ),
        grid=grid,
        in_specs=[table] * (len(read) + len(write))
        + [number] * len(scalars)
        + [codes, scale] * len(read)
        + [whole] * len(flat),
        out_specs=[codes, scale] * len(write) + [whole] * len(outputs),
        out_shape=[jax.ShapeDtypeStruct((form.rows, stride), jnp.uint8), scales] * len(write)
        + [jax.ShapeDtypeStruct((form.rows, form.width), x.dtype) for x in outputs],
        input_output_aliases=aliases,
        interpret=interpret,
    )
    given = [jnp.asarray(tables(codec)) for codec in (*read, *write)]
    given += [_number(x) for x in scalars]
    for parts in stored:
        given += [form.in_rows(parts["codes"], stride), form.tiled(parts["scale"], columns)]
    out = call(*given, *flat)
    new = []
    for i, codec in enumerate(write):
        shapes = codec.shapes(shape)
        codes_out = form.out_of_rows(out[2 * i], shapes["codes"].shape)
        scale_out = form.untiled(out[2 * i + 1], shapes["scale"].shape)
        new.append({"codes": codes_out, "scale": scale_out})
    return [form.out_of_rows(x, shape) for x in out[2 * len(write) :]], new


def columns_of(form: Geometry) -> int:
    """Returns the columns of a tile."""
    return form.span * max(1, min(WIDE, form.width) // form.span)


def _number(x: jax.Array) -> jax.Array:
    """A scalar as the scalar memory holds it: 32 bits."""
    wide = jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.int32
    return jnp.asarray(x, wide).reshape(1)


def _kernel(
    function: Function,
    read: Sequence[TableCodec],
    write: Sequence[TableCodec],
    form: Geometry,
    scalars: int,
    inputs: int,
    outputs: int,
    *refs: Any,
) -> None:
    """A tile: span by span, so that what is decoded stays in registers."""
    rest = iter(refs)

    def take(count: int) -> list[Any]:
        return list(itertools.islice(rest, count))

    read_tables, write_tables, numbers = take(len(read)), take(len(write)), take(scalars)
    stored, arrays = take(2 * len(read)), take(inputs)
    new, results = take(2 * len(write)), take(outputs)
    width = (*stored, *new)[0].shape[1] * 8 // form.bits
    values = [ref[0] for ref in numbers]
    for start in range(0, width, form.span):
        moments = [
            _decode(codec, form, table, stored[2 * i], stored[2 * i + 1], start)
            for i, (codec, table) in enumerate(zip(read, read_tables, strict=True))
        ]
        given = [ref[:, start : start + form.span] for ref in arrays]
        out, fresh = function(moments, given, values)
        for ref, x in zip(results, out, strict=True):
            ref[:, start : start + form.span] = x
        inside = _inside(form, pl.program_id(1) * width + start) if form.is_short else None
        for i, (codec, table, x) in enumerate(zip(write, write_tables, fresh, strict=True)):
            _encode(codec, form, table, x, inside, new[2 * i], new[2 * i + 1], start)


def _inside(form: Geometry, first: jax.Array) -> jax.Array:
    """Which entries of a span are the array's; beyond them is whatever was in memory."""
    row, lane = (jax.lax.broadcasted_iota(jnp.int32, (ROWS, form.span), axis) for axis in (0, 1))
    row, lane = row + pl.program_id(0) * ROWS, lane + first
    return (lane < form.width) & (row * form.width + lane < form.size)


def _decode(
    codec: TableCodec, form: Geometry, table: Any, codes: Any, scale: Any, start: int
) -> jax.Array:
    """The moments of a span, float32 ``(rows, span)``."""
    held = codes[:, start * form.bits // 8 : (start + form.span) * form.bits // 8]
    parts = []
    for number in range(0, form.span, LANES):
        code = _unpacked(held, number) if form.bits == 4 else held[:, number : number + LANES]
        found = entries_of(table[...], code.astype(jnp.int32), form.bits)
        block = (start + number) // form.block
        parts.append(found * scale[:, block : block + 1])
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _encode(
    codec: TableCodec,
    form: Geometry,
    table: Any,
    x: jax.Array,
    inside: jax.Array | None,
    codes: Any,
    scale: Any,
    start: int,
) -> None:
    """Stores a span."""
    if inside is not None:
        x = jnp.where(inside, x, 0.0)
    found = []
    for at in range(0, form.span, form.block):
        cut = x[:, at : at + form.block]
        most = scale_of(codec, cut, _largest(cut))
        block = (start + at) // form.block
        scale[:, block : block + 1] = most
        y = cut / jnp.where(most == 0.0, 1.0, most)
        for lane in range(0, form.block, LANES):
            code = _codes(codec, table[...], y[:, lane : lane + LANES])
            if inside is not None:  # half a byte may be left over
                code = jnp.where(inside[:, at + lane : at + lane + LANES], code, 0)
            found.append(code)
    if form.bits == 4:
        found = [_packed(*found[i : i + 2]) for i in range(0, len(found), 2)]
    for i, part in enumerate(found):
        first = start * form.bits // 8 + i * LANES
        codes[:, first : first + LANES] = part.astype(jnp.uint8)


def _largest(x: jax.Array) -> jax.Array:
    """The largest magnitude of each row as a bit pattern: a maximum of floats may hide NaN."""
    return from_bits(jnp.max(magnitude_bits(x), axis=1, keepdims=True))


def _codes(codec: TableCodec, table: jax.Array, y: jax.Array) -> jax.Array:
    code = codes_of(table, y, codec.bits, codec.ties == "upper")
    if codec.keep_sign:
        code = same_sign(codec, y, code, entries_of(table, code, codec.bits))
    return code


def _unpacked(held: jax.Array, number: int) -> jax.Array:
    """128 codes of 4 bits from the 64 bytes that hold them."""
    around = number // 2 // LANES * LANES
    whole = held[:, around : around + LANES].astype(jnp.int32)
    lane = jax.lax.broadcasted_iota(jnp.int32, whole.shape, 1)
    pair = each(whole, (lane >> 1) + (number // 2 - around))
    return jnp.where(lane & 1 == 0, pair >> 4, pair & 15)


def _packed(first: jax.Array, second: jax.Array) -> jax.Array:
    """128 bytes of two runs of 128 codes of 4 bits, the earlier code of a pair in the high half."""
    lane = jax.lax.broadcasted_iota(jnp.int32, first.shape, 1)
    even = (2 * lane) & (LANES - 1)
    high, low = (
        jnp.where(lane < LANES // 2, each(first, even + odd), each(second, even + odd))
        for odd in (0, 1)
    )
    return (high << 4) | low
