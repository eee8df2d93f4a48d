"""The products as Pallas kernels for TPUs."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from optkit.kernels.blocks import bytes_of, check_on_chip, cut, filled
from optkit.kernels.symmetric_matmul.blocks import TpuBlocks, lower_tiles, tpu_blocks

# What the compiler needs beside the buffers: a product on its way to memory.
_SPARE = 4 * 2**20
_ARBITRARY: Literal["arbitrary"] = "arbitrary"  # a tile is visited several times


def symmetric_product(
    left: jax.Array,  # (batch, m, k)
    right: jax.Array,  # (batch, m, k)
    addend: jax.Array | None,  # (batch, m, m)
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
    *,
    blocks: TpuBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """``base.symmetric_product``: a tile and its mirror image are written one after the other."""
    batch, m, depth = left.shape
    blocks = blocks or tpu_blocks(m, depth)
    left, right = (filled(x, {1: blocks.rows, 2: blocks.depth}) for x in (left, right))
    added = [] if addend is None else [filled(addend, {1: blocks.rows, 2: blocks.rows})]
    rows, columns = lower_tiles(left.shape[1] // blocks.rows)
    steps = left.shape[2] // blocks.depth

    # The last step of a tile writes its mirror image, and reads nothing new.
    def left_at(b: Any, t: Any, k: Any, i: Any, j: Any, numbers: Any) -> Any:
        return b, i[t], jnp.minimum(k, steps - 1)

    def right_at(b: Any, t: Any, k: Any, i: Any, j: Any, numbers: Any) -> Any:
        return b, j[t], jnp.minimum(k, steps - 1)

    def added_at(b: Any, t: Any, k: Any, i: Any, j: Any, numbers: Any) -> Any:
        return b, i[t], j[t]

    def out_at(b: Any, t: Any, k: Any, i: Any, j: Any, numbers: Any) -> Any:
        mirrored = k == steps
        return b, jnp.where(mirrored, j[t], i[t]), jnp.where(mirrored, i[t], j[t])

    operand, tile = (None, blocks.rows, blocks.depth), (None, blocks.rows, blocks.rows)
    done = pl.pallas_call(
        functools.partial(_symmetric_kernel, steps=steps, precision=precision),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(batch, len(rows), steps + 1),
            in_specs=[pl.BlockSpec(operand, left_at), pl.BlockSpec(operand, right_at)]
            + [pl.BlockSpec(tile, added_at) for _ in added],
            out_specs=pl.BlockSpec(tile, out_at),
            scratch_shapes=[pltpu.VMEM((blocks.rows, blocks.rows), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, left.shape[1], left.shape[1]), left.dtype),
        compiler_params=_parameters(blocks, blocks.rows, left.dtype, 3),
        cost_estimate=_cost(batch * len(rows) * blocks.rows**2, left.shape[2], left, right, *added),
        interpret=interpret,
        name="symmetric_product",
    )(jnp.asarray(rows), jnp.asarray(columns), _numbers(alpha, beta), left, right, *added)
    return cut(done, (batch, m, m))


def _symmetric_kernel(
    rows: Any,
    columns: Any,
    numbers: Any,
    left: Any,  # (tile, depth)
    right: Any,  # (tile, depth)
    *others: Any,
    steps: int,
    precision: lax.PrecisionLike,
) -> None:
    *added, out, total = others
    step, tile = pl.program_id(2), pl.program_id(1)

    @pl.when(step == 0)
    def start() -> None:
        total[...] = jnp.zeros_like(total)

    @pl.when(step < steps)
    def multiply() -> None:
        over = (((1,), (1,)), ((), ()))
        total[...] += lax.dot_general(
            left[...], right[...], over, precision=precision, preferred_element_type=jnp.float32
        )

    @pl.when(step == steps - 1)
    def end() -> None:
        y = numbers[0] * total[...]
        if added:
            y = y + numbers[1] * added[0][...].astype(jnp.float32)
        total[...] = y
        out[...] = y.astype(out.dtype)

    @pl.when((step == steps) & (rows[tile] != columns[tile]))
    def mirror() -> None:
        out[...] = total[...].T.astype(out.dtype)

    @pl.when((step == steps) & (rows[tile] == columns[tile]))
    def symmetrise() -> None:
        out[...] = (0.5 * (total[...] + total[...].T)).astype(out.dtype)


def add_product(
    factor: jax.Array,  # (batch, m, m)
    x: jax.Array,  # (batch, m, n)
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
    *,
    blocks: TpuBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """``base.add_product``."""
    batch, m, n = x.shape
    blocks = blocks or tpu_blocks(m, m)
    size, depth = blocks.rows, blocks.depth
    wide = tpu_blocks(n, n).rows
    factor = filled(factor, {1: size, 2: depth})
    # As rows of the result X fills tiles, as rows of the factor's depth its blocks.
    y, addend = filled(x, {1: depth, 2: wide}), filled(x, {1: size, 2: wide})
    steps = factor.shape[2] // depth
    done = pl.pallas_call(
        functools.partial(_add_kernel, steps=steps, precision=precision),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, addend.shape[1] // size, addend.shape[2] // wide, steps),
            in_specs=[
                pl.BlockSpec((None, size, depth), lambda b, i, j, k, _: (b, i, k)),
                pl.BlockSpec((None, depth, wide), lambda b, i, j, k, _: (b, k, j)),
                pl.BlockSpec((None, size, wide), lambda b, i, j, k, _: (b, i, j)),
            ],
            out_specs=pl.BlockSpec((None, size, wide), lambda b, i, j, k, _: (b, i, j)),
            scratch_shapes=[pltpu.VMEM((size, wide), jnp.float32)],
        ),
        out_shape=jax.ShapeDtypeStruct(addend.shape, x.dtype),
        compiler_params=_parameters(blocks, wide, x.dtype, 4),
        cost_estimate=_cost(addend.size, factor.shape[2], factor, y, addend),
        interpret=interpret,
        name="add_product",
    )(_numbers(alpha, beta), factor, y, addend)
    return cut(done, x.shape)


def _add_kernel(
    numbers: Any,
    factor: Any,  # (tile, depth)
    x: Any,  # (depth, wide)
    addend: Any,  # (tile, wide)
    out: Any,
    total: Any,
    *,
    steps: int,
    precision: lax.PrecisionLike,
) -> None:
    step = pl.program_id(3)

    @pl.when(step == 0)
    def start() -> None:
        total[...] = jnp.zeros_like(total)

    total[...] += jnp.dot(
        factor[...], x[...], precision=precision, preferred_element_type=jnp.float32
    )

    @pl.when(step == steps - 1)
    def end() -> None:
        y = numbers[0] * total[...] + numbers[1] * addend[...].astype(jnp.float32)
        out[...] = y.astype(out.dtype)


def _parameters(blocks: TpuBlocks, wide: int, dtype: Any, axes: int) -> pltpu.CompilerParams:
    """Of a kernel with a tile in, a tile out and two operands, each twice, and a sum."""
    operands = [((2, side, blocks.depth), dtype) for side in (blocks.rows, wide)]
    tiles = [((4, blocks.rows, wide), dtype), ((2, blocks.rows, wide), jnp.float32)]
    needed = bytes_of(*operands, *tiles) + _SPARE
    return pltpu.CompilerParams(
        dimension_semantics=[_ARBITRARY] * axes,
        vmem_limit_bytes=check_on_chip(f"a product in {blocks}", needed, "tpu"),
    )


def _cost(entries: int, depth: int, *operands: jax.Array) -> pl.CostEstimate:
    """Of a product with a number of entries that are computed."""
    moved = sum(x.size * x.dtype.itemsize for x in operands)
    return pl.CostEstimate(
        flops=2 * entries * depth,
        transcendentals=0,
        bytes_accessed=moved + entries * operands[0].dtype.itemsize,
    )


def _numbers(alpha: float, beta: float) -> jax.Array:
    return jnp.asarray([alpha, beta], jnp.float32)
