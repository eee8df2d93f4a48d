"""Packing by products of matrices is packing by bits, byte for byte."""

import jax.numpy as jnp
import numpy as np

from optkit.codecs import packing


def test_products_pack_as_bits_do() -> None:
    random = np.random.default_rng(0)
    codes = jnp.asarray(random.integers(0, 16, (3, 512)), jnp.int8)
    packed = packing.pack_nibbles(codes)
    np.testing.assert_array_equal(packing.by_products(codes, 2), packed)
    np.testing.assert_array_equal(packing.read_by_products(packed, 2), codes)
    bits = jnp.asarray(random.integers(0, 2, 2048), bool)
    np.testing.assert_array_equal(packing.by_products(bits, 8), jnp.packbits(bits))
    np.testing.assert_array_equal(packing.read_by_products(jnp.packbits(bits), 8), bits)
