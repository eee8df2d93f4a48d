"""Bringing the singular values of a matrix into [0, 1] before a Newton-Schulz iteration."""

from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optkit.linalg.norms import fused_product, safe_sqrt, to_unit_peak
from optkit.linalg.one_by_one import one_by_one

EpsMode = Literal["add", "clamp"]
Precondition = Literal["frobenius", "spectral", "schatten", "aol"]


def check_options(eps_mode: str, precondition: str, requires: str | None) -> None:
    """Raises on an unknown option, or on a coefficient set used without its preconditioning.

    Args:
      eps_mode: "add" or "clamp".
      precondition: one of the `Precondition` names.
      requires: what the coefficient set requires, or None.

    Raises:
      ValueError: naming the value and the remedy.
    """
    if eps_mode not in get_args(EpsMode):
        raise ValueError(f"eps_mode must be one of {get_args(EpsMode)}, got {eps_mode!r}")
    if precondition not in get_args(Precondition):
        raise ValueError(
            f"precondition must be one of {get_args(Precondition)}, got {precondition!r}"
        )
    if requires is not None and precondition != requires:
        raise ValueError(
            f"this coefficient set flips signs unless the input is preconditioned with "
            f"{requires!r}, got precondition={precondition!r}: pass precondition={requires!r}, "
            f"or pass the rows themselves to take the risk"
        )


def normalise(
    x: jax.Array,
    *,
    eps: float = 0.0,
    eps_mode: EpsMode = "add",
    margin: float = 1.0,
    precondition: Precondition = "frobenius",
    compute_dtype: DTypeLike | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Divides X by a bound on its spectral norm, in any units from 1e-30 to 1e+30.

    "frobenius", "spectral" and "schatten" divide X by ||X||_F, sigma_max(X) or ||X X^T||_F^(1/2);
    "aol" divides row i by sqrt(sum_j |(X X^T)_ij|), which moves the singular vectors a little.
    With a norm s the divisor is margin s + eps ("add") or max(margin s, eps) ("clamp"): eps has
    the units of X. A zero matrix (for "aol" a zero row) stays zero.

    Args:
      x: (..., m, n) with m <= n, not of zero size.
      eps: see above.
      eps_mode: see above.
      margin: see above.
      precondition: see above.
      compute_dtype: dtype of the result; norms are always taken in float32 at least.
      precision: of the product X X^T.

    Returns:
      The normalised X, and its Gram matrix (..., m, m) where that was needed anyway, else None.

    Reference: Boissin et al., arXiv 2512.04632 (AOL in front of Newton-Schulz).
    """
    dtype = x.dtype if compute_dtype is None else jnp.dtype(compute_dtype)
    y, peak = to_unit_peak(x)
    eps_over_peak = eps / peak if eps else 0.0

    def divisor(norm: jax.Array, unit_eps: jax.Array | float) -> jax.Array:
        scaled = margin * norm
        scaled = scaled + unit_eps if eps_mode == "add" else jnp.maximum(scaled, unit_eps)
        return jnp.where(scaled == 0, 1.0, scaled)

    if precondition == "spectral":
        norm = one_by_one(partial(jnp.linalg.svd, compute_uv=False), y)[..., :1, None]
        return (y / divisor(norm, eps_over_peak)).astype(dtype), None

    norm = safe_sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True))
    if precondition == "frobenius":
        return (y / divisor(norm, eps_over_peak)).astype(dtype), None

    # Both remaining ones need the Gram matrix. Unit Frobenius norm first, so that it cannot
    # overflow in float16, whatever the width.
    unit = (y / divisor(norm / margin, 0.0)).astype(dtype)
    wide = fused_product(unit, unit.mT, precision=precision).astype(y.dtype)
    unit_eps = eps_over_peak / jnp.where(norm == 0, 1.0, norm)
    if precondition == "schatten":
        square = safe_sqrt(jnp.sum(wide * wide, axis=(-2, -1), keepdims=True))
    else:
        square = jnp.sum(jnp.abs(wide), axis=-1, keepdims=True)
    inverse = 1.0 / divisor(safe_sqrt(square), unit_eps)
    scaled = (unit.astype(y.dtype) * inverse).astype(dtype)
    return scaled, (wide * inverse * inverse.mT).astype(dtype)
