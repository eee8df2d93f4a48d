"""Tables in registers: entries by their codes, and codes by search, where memory cannot be indexed.

A TPU's vector unit picks, in each row of a register, lanes by number: 128 of them at most. A table
of 256 entries is two such rows. Counting the thresholds below a number is a search in a tree that
lies in lanes: node ``k`` has the children ``2k`` and ``2k+1``, its first seven levels fill one row,
and the eighth has a row of its own.
"""

import jax
import jax.numpy as jnp
import numpy as np

from optkit.codecs.table import TableCodec
from optkit.kernels.block_codec.geometry import LANES


def tables(codec: TableCodec) -> np.ndarray:
    """Returns float32 ``(4, 128)``: two rows of entries, two of a tree of thresholds."""
    entries = np.resize(codec.entries, 2 * LANES)
    entries[len(codec.entries) :] = codec.entries[-1]
    middles = (codec.entries[:-1] + codec.entries[1:]) / np.float32(2.0)
    count = 2**codec.bits - 1
    sorted_ = np.full(count, np.inf, np.float32)
    sorted_[: len(middles)] = middles
    tree = np.full(2 * LANES, np.inf, np.float32)
    for level in range(codec.bits):
        step = (count + 1) >> level
        tree[1 << level : 2 << level] = sorted_[step // 2 - 1 :: step]
    return np.stack([*entries.reshape(2, LANES), *tree.reshape(2, LANES)])


def pick(row: jax.Array, index: jax.Array) -> jax.Array:
    """Returns ``row[0, index]`` for a row ``(1, 128)`` and indices ``(rows, 128)``."""
    return each(jnp.broadcast_to(row, index.shape), index)


def each(x: jax.Array, index: jax.Array) -> jax.Array:
    """Returns ``x[i, index[i, j]]`` for arrays ``(rows, 128)``."""
    return jnp.take_along_axis(x, index, axis=1, mode="promise_in_bounds")


def entries_of(table: jax.Array, codes: jax.Array, bits: int) -> jax.Array:
    """Returns the entries of codes, int32 ``(rows, 128)``."""
    low = pick(table[0:1], codes & (LANES - 1))
    if bits < 8:
        return low
    return jnp.where(codes < LANES, low, pick(table[1:2], codes & (LANES - 1)))


def codes_of(table: jax.Array, x: jax.Array, bits: int, ties: bool) -> jax.Array:
    """Counts the thresholds below numbers ``(rows, 128)``, with ``ties`` also those equal."""
    node = jnp.ones(x.shape, jnp.int32)
    for level in range(bits):
        row, first = (table[2:3], 0) if level < 7 else (table[3:4], LANES)
        threshold = pick(row, node - first)
        node = 2 * node + (x >= threshold if ties else x > threshold).astype(jnp.int32)
    return node - (1 << bits)


def scale_of(codec: TableCodec, x: jax.Array, most: jax.Array) -> jax.Array:
    """Returns the scales ``(rows, 1)`` of blocks ``(rows, lanes)`` of these largest magnitudes."""
    if codec.floor > 0.0:
        most = jnp.where(most == 0.0, 0.0, jnp.maximum(most, codec.floor))
    if codec.scale == "extreme":
        top = jnp.max(x, axis=1, keepdims=True)
        most = jnp.where((top < most) & (most > 0.0), -most, most)
    return most


def same_sign(codec: TableCodec, y: jax.Array, code: jax.Array, entry: jax.Array) -> jax.Array:
    """Returns codes whose entries have the signs of numbers, as ``keep_sign`` wants them."""
    low, high = (y > 0.0) & (entry <= 0.0), (y < 0.0) & (entry >= 0.0)
    moved = jnp.where(low, code + 1, jnp.where(high, code - 1, code))
    return jnp.clip(moved, 0, len(codec.entries) - 1)
