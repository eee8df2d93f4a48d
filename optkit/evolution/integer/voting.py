"""How pairs vote on the steps of a leaf: sums of signed noise, compared with a quantile."""

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.integer.format import LIMIT
from optkit.evolution.integer.noise import IntegerNoise
from optkit.transforms.hyperparams import Scalar

# Entries of noise of one leaf that live together while votes are summed up.
TOGETHER = 2**24

Factors = tuple[jax.Array, jax.Array | None]  # a and b of an IntegerPerturbed leaf


def quantile(share: Scalar, bits: int) -> int | jax.Array:
    """Returns how far out a share of normal numbers lies, ``int(2**bits * PhiInv(1 - share/2))``.

    Args:
      share: in (0, 1]; 1 gives 0.
      bits: behind the point.

    Returns:
      An int for a Python number, else an int32 scalar.
    """
    if isinstance(share, jax.Array):
        # Of 1 - share/2, without its cancellation.
        normal = -jax.scipy.special.ndtri(share.astype(jnp.float32) / 2)
        return (2**bits * normal).astype(jnp.int32)
    return int(2**bits * NormalDist().inv_cdf(1.0 - share / 2))


def votes(signs: jax.Array, factors: Factors, use_clt: bool) -> jax.Array:
    """Returns Z: what the pairs' noise sums up to, each pair with its sign.

    Args:
      signs: int8 ``(K,)`` in -1, 0, 1.
      factors: ``(*layers, K, out, rank)`` and ``(*layers, K, in, rank)`` of a matrix; of a vector
        ``(*layers, K, n)`` and None.
      use_clt: False sums the signs of the noise.

    Returns:
      int32, shape of the leaf.
    """
    a, b = factors
    if not use_clt:
        a, b = jnp.sign(a), None if b is None else jnp.sign(b)
    if b is None:
        return jnp.tensordot(signs.astype(jnp.int32), a.astype(jnp.int32), axes=(0, a.ndim - 2))
    signed = a * signs.reshape(*[1] * (a.ndim - 3), -1, 1, 1)
    return jnp.einsum("...kmr,...knr->...mn", signed, b, preferred_element_type=jnp.int32)


def summed(
    noise: IntegerNoise,
    draw: Callable[[jax.Array], Factors],
    signs: jax.Array,
    use_clt: bool,
    together: int | None,
) -> jax.Array:
    """Returns Z of a leaf; never more of its noise than that of a chunk of pairs is alive.

    Args:
      noise: of the leaf.
      draw: ``draw(pairs)`` returns their noise.
      signs: int8 ``(pairs,)``.
      use_clt: False sums the signs of the noise.
      together: pairs in a chunk; None for as many as have 2**24 entries.

    Returns:
      int32, shape of the leaf.
    """
    pairs = signs.shape[0]
    size = together or max(1, TOGETHER // max(1, noise.numbers * math.prod(noise.shape[:-2])))
    if size >= pairs:
        return votes(signs, draw(jnp.arange(pairs, dtype=jnp.int32)), use_clt)
    chunks = -(-pairs // size)
    # Pairs that only fill the last chunk have no vote.
    padded = jnp.pad(signs, (0, chunks * size - pairs)).reshape(chunks, size)
    numbers = jnp.arange(chunks * size, dtype=jnp.int32).reshape(chunks, size)

    def add(total: jax.Array, chunk: Any) -> tuple[jax.Array, None]:
        return total + votes(chunk[0], draw(chunk[1]), use_clt), None

    return jax.lax.scan(add, jnp.zeros(noise.shape, jnp.int32), (padded, numbers))[0]


def moved(
    leaf: jax.Array, total: jax.Array, bound: int | jax.Array, fixed_point: int, down: bool
) -> jax.Array:
    """Returns a leaf after its step.

    Args:
      leaf: int8.
      total: int32, Z of the leaf.
      bound: what ``2**fixed_point * |Z|`` must reach.
      fixed_point: bits behind the point.
      down: entries whose Z is 0 move down where the bound is 0.

    Returns:
      int8.
    """
    # Without the product, which may overflow.
    least = (bound + 2**fixed_point - 1) >> fixed_point
    step = jnp.where(total > 0, 1, -1) if down else jnp.sign(total)
    wide = leaf.astype(jnp.int32) + jnp.where(jnp.abs(total) < least, 0, step)
    return jnp.clip(wide, -LIMIT, LIMIT).astype(jnp.int8)
