"""What the operation means, in plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp


def perturbed_matmul(
    x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, precision: Any = None
) -> jax.Array:
    """Returns ``x w + ((x b) scale) a^T`` for groups of rows that share their factors.

    Args:
      x: ``(groups, rows, n)``.
      w: ``(n, m)``.
      a: ``(groups, m, rank)``.
      b: ``(groups, n, rank)``.
      scale: ``(groups, rows)``.
      precision: of the products.

    Returns:
      ``(groups, rows, m)`` in the dtype of ``x``; all sums are float32.
    """
    wide = {"precision": precision, "preferred_element_type": jnp.float32}
    shared = jnp.einsum("grn,nm->grm", x, w, **wide)
    thin = jnp.einsum("grn,gnk->grk", x.astype(jnp.float32), b.astype(jnp.float32), **wide)
    thin = thin * scale[..., None]
    own = jnp.einsum("grk,gmk->grm", thin, a.astype(jnp.float32), **wide)
    return (shared + own).astype(x.dtype)
