"""What the operation means, in plain JAX: the noise is drawn in chunks, and each is one product."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optkit.kernels.counters import Counters

# Numbers of noise that live together while an update is summed up: 64 MiB in float32.
TOGETHER = 2**24


def population_update(
    weights: jax.Array,
    noise: Counters,
    shape: tuple[int, int],
    signs: bool = False,
    precision: Any = None,
    chunk: int | None = None,
) -> jax.Array:
    """Returns ``sum_k w_k B_k A_k^T``, no term of which is made.

    Args:
      weights: ``(pairs,)``.
      noise: what the factors follow from.
      shape: ``(n, m)``, the rows of B and of A.
      signs: sum the signs of B and A instead of themselves.
      precision: of the products.
      chunk: pairs whose noise lives together; None for what fits into 64 MiB.

    Returns:
      ``(n, m)`` in float32.
    """
    pairs, (n, m) = weights.shape[0], shape
    size = min(pairs, chunk or max(1, TOGETHER // max(1, noise.rank * (n + m))))
    count = -(-pairs // size)
    given = jnp.pad(weights.astype(jnp.float32), (0, count * size - pairs)).reshape(count, size)

    def step(total: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
        first = jnp.asarray(noise.first, jnp.uint32) + index * size
        own = replace(noise, first=first)
        a, b = own.factor("a", size, m), own.factor("b", size, n)
        if signs:
            a, b = jnp.sign(a), jnp.sign(b)
        each = given[index].reshape(size, 1, 1)
        return total + jnp.einsum("knr,kmr->nm", b, a * each, precision=precision), None

    zeros = jnp.zeros(shape, jnp.float32)
    if count == 1:
        return step(zeros, jnp.uint32(0))[0]
    return jax.lax.scan(step, zeros, jnp.arange(count, dtype=jnp.uint32))[0]
