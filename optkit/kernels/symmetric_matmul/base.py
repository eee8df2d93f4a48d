"""What the operations mean, in plain JAX."""

import jax
from jax import lax

from optkit.linalg.norms import fused_product


def symmetric_product(
    left: jax.Array,
    right: jax.Array,
    addend: jax.Array | None,
    alpha: float,
    beta: float,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """``alpha left right^T + beta addend``, rounded once."""
    return fused_product(left, right.mT, alpha=alpha, addend=addend, beta=beta, precision=precision)


def add_product(
    factor: jax.Array, x: jax.Array, alpha: float, beta: float, precision: lax.PrecisionLike
) -> jax.Array:
    """``beta X + alpha factor X``, rounded once."""
    return fused_product(factor, x, alpha=alpha, addend=x, beta=beta, precision=precision)
