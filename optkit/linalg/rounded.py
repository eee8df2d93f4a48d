"""Newton-Schulz with the rounding of the 16-bit reference implementations."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from optkit.linalg.coefficients import Coefficients, as_coefficient_set
from optkit.linalg.norms import check_matrix, frobenius_norm


def newton_schulz_rounded(
    x: jax.Array,
    coefficients: Coefficients = "jordan",
    steps: int | None = None,
    *,
    eps: float = 0.0,
    compute_dtype: DTypeLike = jnp.bfloat16,
) -> jax.Array:
    """Newton-Schulz in which every product, term and sum is rounded by itself.

    X <- r(r(X) / r(||X|| + eps)); for each row (a, b, c): A = r(X X^T),
    B = r(r(b A) + r(r(c A) A)), X <- r(r(a X) + r(B X)), with r the rounding to `compute_dtype`.
    This is what an eager 16-bit program computes, and so what published bfloat16 runs did. The
    terms cancel, so it is less accurate than `newton_schulz` in the same dtype, which rounds once a
    step: take it to reproduce a run, not to train.

    Args:
      x: (..., m, n) floating point; leading axes are a batch.
      coefficients: as in `newton_schulz`.
      steps: as in `newton_schulz`.
      eps: added to the norm, in the units of x.
      compute_dtype: the 16-bit dtype; one with float32's range, since x is cast first.

    Returns:
      The factor, of the shape and dtype of x.

    Raises:
      ValueError: bad shape, or too many steps for the set.
      TypeError: not a real floating-point dtype.

    Example:
      >>> newton_schulz_rounded(jnp.diag(jnp.array([3.0, 0.0])), "classic_cubic").tolist()
      [[1.0, 0.0], [0.0, 0.0]]

    Reference: Jordan et al., Muon (2024), whose code casts to bfloat16.
    """
    x = jnp.asarray(x)
    check_matrix(x, "newton_schulz_rounded")
    rows = as_coefficient_set(coefficients).expand(steps)
    if x.size == 0:
        return x
    info = jnp.finfo(compute_dtype)

    def r(value: jax.Array) -> jax.Array:
        # A cast alone may be dropped: XLA is free to keep more digits than were asked for.
        return lax.reduce_precision(value, exponent_bits=info.nexp, mantissa_bits=info.nmant)

    tall = x.shape[-2] > x.shape[-1]
    y = r((x.mT if tall else x).astype(jnp.float32))
    norm = r(r(frobenius_norm(y)) + eps)
    y = r(y / jnp.where(norm > 0, norm, 1.0))
    for a, b, c in rows:
        gram = r(y @ y.mT)
        inner = r(r(b * gram) + r(r(c * gram) @ gram))
        y = r(r(a * y) + r(inner @ y))
    y = y.astype(x.dtype)
    return y.mT if tall else y
