"""Codes of a few bits put into bytes along flat arrays, and read again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_LANES = 128


def _is_local() -> bool:
    """Whether an array is all that there is of it here: inside a shard_map over the whole mesh.

    Elsewhere it may be cut where a vector of lanes would cross devices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return bool(mesh.manual_axes) and set(mesh.manual_axes) == set(mesh.axis_names)


def _shifts(each: int) -> np.ndarray:
    """By how many bits each of the neighbours in a byte is shifted; the first is the highest."""
    return np.arange(each)[::-1] * (8 // each)


def by_products(codes: jax.Array, each: int) -> jax.Array:
    """Packs by a product of matrices, in which lanes of a TPU's vectors meet; it is exact.

    Neighbours as an axis of their own would take a vector each.

    Args:
      codes: (..., n), each below ``2**(8/each)``; n a multiple of ``128*each``.
      each: codes in a byte.

    Returns:
      uint8 (..., n/each).
    """
    rows = codes.reshape(-1, _LANES * each).astype(jnp.bfloat16)
    weight = np.kron(np.eye(_LANES), 2.0 ** _shifts(each)[:, None])
    both = lax.dot(rows, jnp.asarray(weight, jnp.bfloat16), preferred_element_type=jnp.float32)
    packed = both.astype(jnp.int32).astype(jnp.uint8)
    return packed.reshape(*codes.shape[:-1], codes.shape[-1] // each)


def read_by_products(packed: jax.Array, each: int) -> jax.Array:
    """Undoes ``by_products``: every byte is copied beside itself, and its codes are cut out."""
    rows = packed.reshape(-1, _LANES).astype(jnp.int32).astype(jnp.bfloat16)
    copies = jnp.asarray(np.kron(np.eye(_LANES), np.ones((1, each))), jnp.bfloat16)
    wide = lax.dot(rows, copies, preferred_element_type=jnp.float32).astype(jnp.int32)
    shifts = jnp.asarray(np.tile(_shifts(each), _LANES), jnp.int32)
    codes = lax.shift_right_logical(wide, jnp.broadcast_to(shifts, wide.shape)) & (
        2 ** (8 // each) - 1
    )
    return codes.astype(jnp.uint8).reshape(*packed.shape[:-1], packed.shape[-1] * each)


def _pairs(codes: jax.Array) -> jax.Array:
    pairs = codes.astype(jnp.uint8).reshape(*codes.shape[:-1], codes.shape[-1] // 2, 2)
    # As one number of 16 bits, the first code in the low ones: a loop over whole vectors.
    both = lax.bitcast_convert_type(pairs, jnp.uint16)
    return ((both << 4) | (both >> 8)).astype(jnp.uint8)


def _unpaired(packed: jax.Array) -> jax.Array:
    both = packed.astype(jnp.uint16)
    pairs = lax.bitcast_convert_type((both >> 4) | ((both & 15) << 8), jnp.uint8)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def pack_nibbles(codes: jax.Array) -> jax.Array:
    """Returns two 4-bit codes in a byte, the first one in the high half; the last axis is even."""
    if _is_local() and codes.shape[-1] % (2 * _LANES) == 0:
        return lax.platform_dependent(codes, tpu=partial(by_products, each=2), default=_pairs)
    return _pairs(codes)


def unpack_nibbles(packed: jax.Array) -> jax.Array:
    """Undoes ``pack_nibbles``."""
    if _is_local() and packed.shape[-1] % _LANES == 0:
        return lax.platform_dependent(
            packed, tpu=partial(read_by_products, each=2), default=_unpaired
        )
    return _unpaired(packed)


def pack_bits(bits: jax.Array) -> jax.Array:
    """Returns ``jnp.packbits`` of a flat array: eight in a byte, the first one the highest."""
    if not _is_local():
        return jnp.packbits(bits)
    size = -(-bits.size // 8)

    def lanes(bits: jax.Array) -> jax.Array:
        rows = jnp.pad(bits.astype(jnp.uint8), (0, -bits.size % (8 * _LANES)))
        return by_products(rows, 8)[:size]

    return lax.platform_dependent(bits, tpu=lanes, default=jnp.packbits)


def unpack_bits(packed: jax.Array, count: int) -> jax.Array:
    """Returns ``jnp.unpackbits`` of a flat array, so many of them."""

    def plain(packed: jax.Array) -> jax.Array:
        return jnp.unpackbits(packed, count=count)

    def lanes(packed: jax.Array) -> jax.Array:
        rows = jnp.pad(packed, (0, -packed.size % _LANES))
        return read_by_products(rows, 8)[:count]

    if not _is_local():
        return plain(packed)
    return lax.platform_dependent(packed, tpu=lanes, default=plain)
