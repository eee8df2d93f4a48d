"""What the operation means, in plain JAX."""

import jax
from jax import lax
from jax.typing import DTypeLike

from optkit.linalg.coefficients import Row
from optkit.linalg.gram import gram_steps
from optkit.linalg.newton_schulz import standard_steps
from optkit.linalg.normalise import EpsMode, normalise


def iterate(
    x: jax.Array,
    rows: tuple[Row, ...],
    resets: frozenset[int] | None,
    *,
    eps: float | None,
    eps_mode: EpsMode,
    margin: float,
    compute_dtype: DTypeLike,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Divides by the norm, unless ``eps`` is None, and takes the steps of one form or the other."""
    y = x.astype(compute_dtype)
    if eps is not None:
        y, _ = normalise(x, eps=eps, eps_mode=eps_mode, margin=margin, compute_dtype=compute_dtype)
    if resets is None:
        return standard_steps(y, rows, precision=precision)
    return gram_steps(y, rows, resets, precision=precision)
