"""Blocks of neighbouring entries that share a scale: how an array is cut, whatever its sharding."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

from optkit.codecs.base import Shape
from optkit.codecs.packing import pack_nibbles, unpack_nibbles

# Along rows of the array, along its flattened entries, or rows where a row holds a whole block.
Layout = Literal["auto", "rows", "flat"]
# Neighbours of which a maximum is taken first.
_RUN = 32


def in_rows(shape: Shape, block: int | None, layout: Layout) -> bool:
    """Tells whether the blocks of a shape lie along its rows; None is one block for the leaf."""
    if block is None:
        return False
    if layout == "auto":
        return len(shape) > 0 and shape[-1] >= block
    return layout == "rows" and len(shape) > 0


def blocks_shape(shape: Shape, block: int | None, layout: Layout) -> Shape:
    """Returns the shape of an array's blocks: ``(*leading, blocks, block)``."""
    if block is None:
        return (1, math.prod(shape))
    if in_rows(shape, block, layout):
        return (*shape[:-1], -(-shape[-1] // block), block)
    return (-(-math.prod(shape) // block), block)


def split_blocks(x: jax.Array, block: int | None, layout: Layout) -> jax.Array:
    """Returns an array as ``(*leading, blocks, block)``; a short last block is filled with 0.

    Args:
      x: any shape.
      block: entries of a block; None for all of them.
      layout: "flat" cuts the flattened array (row-major), as the references do; "rows" cuts each
        row by itself, so that leading axes stay what they are and may be sharded; "auto" takes rows
        that are as long as a block. Where the block divides the row all three are the same blocks.

    Returns:
      The blocks.
    """
    shape = blocks_shape(x.shape, block, layout)
    lead, size = shape[:-2], shape[-2] * shape[-1]
    if not in_rows(x.shape, block, layout):
        x = x.reshape(-1)
    if x.shape[-1] != size:
        x = jnp.pad(x, [(0, 0)] * len(lead) + [(0, size - x.shape[-1])])
    return x.reshape(shape)


def merge_blocks(blocks: jax.Array, shape: Shape, layout: Layout) -> jax.Array:
    """Undoes ``split_blocks``: returns the array of a shape."""
    if blocks.size == math.prod(shape):
        return blocks.reshape(shape)
    joined = blocks.reshape(*blocks.shape[:-2], math.prod(blocks.shape[-2:]))
    if in_rows(shape, blocks.shape[-1], layout):
        size = shape[-1]
    else:
        size = math.prod(shape)
    if joined.shape[-1] != size:
        joined = jax.lax.slice_in_dim(joined, 0, size, axis=joined.ndim - 1)
    return joined.reshape(shape)


def largest(blocks: jax.Array) -> jax.Array:
    """Returns the largest magnitude of each block ``(..., block)``; NaN if one is.

    Maxima are exact in any order. On several devices a block may be cut, so that runs of neighbours
    come first and only their maxima travel; on one CPU the order is one that compiles to vectors.
    Magnitudes are compared as bit patterns, which are in their order: on CPUs XLA's maximum of many
    floats leaves out what is not a number.
    """
    block = blocks.shape[-1]
    if block == 0 or block % _RUN:
        return from_bits(jnp.max(magnitude_bits(blocks), axis=-1, initial=0))
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        return largest_by_slices(blocks)
    runs = magnitude_bits(blocks).reshape(*blocks.shape[:-1], block // _RUN, _RUN)
    return from_bits(jnp.max(jnp.max(runs, axis=-1), axis=-1))


def largest_by_slices(blocks: jax.Array) -> jax.Array:
    """``largest`` by comparing slices."""
    bits = magnitude_bits(blocks).reshape(*blocks.shape[:-1], blocks.shape[-1] // _RUN, _RUN)
    most = bits[..., 0, :]
    for run in range(1, bits.shape[-2]):
        most = jnp.maximum(most, bits[..., run, :])
    # A loop of its own for the rest: fused into one, neither is compiled to vectors.
    most = jax.lax.optimization_barrier(most)
    return from_bits(jnp.max(most, axis=-1))


def magnitude_bits(x: jax.Array) -> jax.Array:
    """Returns the bit patterns of magnitudes in float32, int32: they are in the same order."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) & 0x7FFFFFFF


def from_bits(bits: jax.Array) -> jax.Array:
    """Returns the float32 numbers that ``magnitude_bits`` read."""
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def nibbles_shape(shape: Shape, block: int | None, layout: Layout) -> Shape:
    """Returns the shape of an array's 4-bit codes, two in a byte along rows or the flat array."""
    if in_rows(shape, block, layout):
        return (*shape[:-1], -(-shape[-1] // 2))
    return (-(-math.prod(shape) // 2),)


def to_nibbles(codes: jax.Array, block: int | None, layout: Layout) -> jax.Array:
    """Packs the codes of an array; a last one without a neighbour gets a zero."""
    rows = codes if in_rows(codes.shape, block, layout) else codes.reshape(-1)
    if rows.shape[-1] % 2:
        rows = jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, 1)])
    return pack_nibbles(rows)


def from_nibbles(packed: jax.Array, shape: Shape, block: int | None, layout: Layout) -> jax.Array:
    """Undoes ``to_nibbles``."""
    codes = unpack_nibbles(packed)
    size = shape[-1] if in_rows(shape, block, layout) else math.prod(shape)
    return jax.lax.slice_in_dim(codes, 0, size, axis=codes.ndim - 1).reshape(shape)
