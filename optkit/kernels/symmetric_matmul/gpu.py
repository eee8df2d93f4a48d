"""The products as Pallas kernels for GPUs, by Triton."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from optkit.kernels.blocks import bytes_of, check_on_chip, cut, filled
from optkit.kernels.symmetric_matmul.blocks import GpuBlocks, lower_tiles

# Operands that are loaded ahead.
_STAGES = 3
_WARPS = 8


def symmetric_product(
    left: jax.Array,  # (batch, m, k)
    right: jax.Array,  # (batch, m, k)
    addend: jax.Array | None,  # (batch, m, m)
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
    *,
    blocks: GpuBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """``base.symmetric_product``: whoever computes a tile writes its mirror image, too."""
    batch, m, _ = left.shape
    blocks = blocks or GpuBlocks()
    left, right = (filled(x, {1: blocks.rows, 2: blocks.depth}) for x in (left, right))
    added = [] if addend is None else [filled(addend, {1: blocks.rows, 2: blocks.rows})]
    tiles = lower_tiles(left.shape[1] // blocks.rows)
    done = pl.pallas_call(
        functools.partial(
            _symmetric_kernel, blocks=blocks, alpha=alpha, beta=beta, precision=precision
        ),
        grid=(tiles.shape[1], batch),
        out_shape=jax.ShapeDtypeStruct((batch, left.shape[1], left.shape[1]), left.dtype),
        compiler_params=_parameters(blocks, left.dtype),
        interpret=interpret,
        name="symmetric_product",
    )(jnp.asarray(tiles), left, right, *added)
    return cut(done, (batch, m, m))


def _symmetric_kernel(
    tiles: Any,  # (2, tiles)
    left: Any,  # (batch, m, k), all of it, in memory
    right: Any,
    *others: Any,
    blocks: GpuBlocks,
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
) -> None:
    *added, out = others
    tile, b = pl.program_id(0), pl.program_id(1)
    i, j = tiles[0, tile], tiles[1, tile]
    here, there = (pl.ds(at * blocks.rows, blocks.rows) for at in (i, j))

    def multiply(k: jax.Array, total: jax.Array) -> jax.Array:
        across = pl.ds(k * blocks.depth, blocks.depth)
        operands = left[b, here, across], right[b, there, across].T
        return total + _dot(*operands, precision)

    zeros = jnp.zeros((blocks.rows, blocks.rows), jnp.float32)
    y = alpha * lax.fori_loop(0, left.shape[2] // blocks.depth, multiply, zeros)
    if added:
        y = y + beta * added[0][b, here, there].astype(jnp.float32)
    y = jnp.where(i == j, 0.5 * (y + y.T), y).astype(out.dtype)
    out[b, here, there] = y
    out[b, there, here] = y.T


def add_product(
    factor: jax.Array,  # (batch, m, m)
    x: jax.Array,  # (batch, m, n)
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
    *,
    blocks: GpuBlocks | None = None,
    interpret: bool = False,
) -> jax.Array:
    """``base.add_product``."""
    blocks = blocks or GpuBlocks()
    size = blocks.rows
    factor = filled(factor, {1: size, 2: max(size, blocks.depth)})
    y = filled(x, {1: max(size, blocks.depth), 2: size})
    done = pl.pallas_call(
        functools.partial(_add_kernel, blocks=blocks, alpha=alpha, beta=beta, precision=precision),
        grid=(factor.shape[1] // size, y.shape[2] // size, len(x)),
        out_shape=jax.ShapeDtypeStruct((len(x), factor.shape[1], y.shape[2]), x.dtype),
        compiler_params=_parameters(blocks, x.dtype),
        interpret=interpret,
        name="add_product",
    )(factor, y)
    return cut(done, x.shape)


def _add_kernel(
    factor: Any,  # (batch, m, m), all of it, in memory
    x: Any,
    out: Any,
    *,
    blocks: GpuBlocks,
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
) -> None:
    b = pl.program_id(2)
    here, there = (pl.ds(pl.program_id(axis) * blocks.rows, blocks.rows) for axis in (0, 1))

    def multiply(k: jax.Array, total: jax.Array) -> jax.Array:
        across = pl.ds(k * blocks.depth, blocks.depth)
        return total + _dot(factor[b, here, across], x[b, across, there], precision)

    zeros = jnp.zeros((blocks.rows, blocks.rows), jnp.float32)
    total = lax.fori_loop(0, factor.shape[2] // blocks.depth, multiply, zeros)
    y = alpha * total + beta * x[b, here, there].astype(jnp.float32)
    out[b, here, there] = y.astype(out.dtype)


def _dot(a: jax.Array, b: jax.Array, precision: lax.PrecisionLike) -> jax.Array:
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _parameters(blocks: GpuBlocks, dtype: Any) -> plgpu.CompilerParams:
    needed = bytes_of(((_STAGES, 2, blocks.rows, blocks.depth), dtype))
    check_on_chip(f"a product in {blocks}", needed, "gpu")
    return plgpu.CompilerParams(num_warps=_WARPS, num_stages=_STAGES)
