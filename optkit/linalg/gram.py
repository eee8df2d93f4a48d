"""Gram Newton-Schulz: the same polynomial, iterated on the small Gram matrix."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optkit.linalg.coefficients import Coefficients, Row, as_coefficient_set
from optkit.linalg.implementation import Choice
from optkit.linalg.newton_schulz import kernel_steps, polynomial, standard_steps
from optkit.linalg.normalise import EpsMode, Precondition, check_options, normalise
from optkit.linalg.norms import check_matrix, fused_product
from optkit.linalg.resets import check_resets, default_resets, segments
from optkit.linalg.symmetric import (
    blocked_gram_steps,
    blocked_standard_steps,
    check_blocks,
)


def gram_newton_schulz(
    x: jax.Array,
    coefficients: Coefficients = "jordan",
    steps: int | None = None,
    *,
    resets: Sequence[int] | None = None,
    eps: float = 0.0,
    eps_mode: EpsMode = "add",
    margin: float | None = None,
    precondition: Precondition = "frobenius",
    precision: jax.lax.PrecisionLike = None,
    compute_dtype: DTypeLike | None = None,
    blocks: int = 1,
    implementation: Choice = "xla",
) -> jax.Array:
    """Newton-Schulz factor of X by products of m x m matrices, m the short side.

    R = X X^T, Q = I; for each row (a, b, c): W = a I + b R + c R^2, Q <- W Q, R <- W R W; at the
    end X <- Q X. A reset before step i applies Q early (X <- Q X, R = X X^T, Q = I), which stops
    the growth of the rounding errors of R below zero. Same result as `newton_schulz` up to
    rounding, and cheaper from about n = 1.5 m on. Square matrices take the standard iteration, and
    so do, with `resets=None`, sets that no few resets make safe in the dtype.

    Args:
      x: (..., m, n) floating point; leading axes are a batch.
      coefficients: name in `COEFFICIENTS`, a `CoefficientSet`, or rows (a, b, c).
      steps: number of steps; None takes the set's own.
      resets: steps before which to reset, counted from 0; those not reached, and 0, do nothing.
        None takes `default_resets` of the rows and the dtype of the iteration.
      eps: as in `newton_schulz`.
      eps_mode: as in `newton_schulz`.
      margin: as in `newton_schulz`.
      precondition: as in `newton_schulz`.
      precision: as in `newton_schulz`.
      compute_dtype: as in `newton_schulz`.
      blocks: as in `newton_schulz`.
      implementation: as in `newton_schulz`.

    Returns:
      The factor, of the shape and dtype of x.

    Raises:
      ValueError: as `newton_schulz`, or a negative reset.
      TypeError: not a real floating-point dtype.
      NotImplementedError: as `newton_schulz`.

    Example:
      >>> from optkit.linalg import newton_schulz
      >>> x = jnp.eye(2, 5)
      >>> bool(jnp.allclose(gram_newton_schulz(x, "cans"), newton_schulz(x, "cans"), atol=1e-4))
      True

    Reference: Zhang, Amsel, Chen, Dao, Gram Newton-Schulz (2026).
    """
    x = jnp.asarray(x)
    check_matrix(x, "gram_newton_schulz")
    chosen = as_coefficient_set(coefficients)
    rows = chosen.expand(steps)
    check_options(eps_mode, precondition, chosen.requires)
    check_blocks(blocks, implementation)
    if x.size == 0:
        return x
    tall = x.shape[-2] > x.shape[-1]
    wide = x.mT if tall else x
    divide = partial(
        normalise,
        eps=eps,
        eps_mode=eps_mode,
        margin=chosen.margin if margin is None else margin,
        precondition=precondition,
        compute_dtype=compute_dtype,
        precision=precision,
    )
    dtype = x.dtype if compute_dtype is None else compute_dtype
    chosen_resets = default_resets(rows, dtype) if resets is None else check_resets(resets)
    standard = chosen_resets is None or x.shape[-2] == x.shape[-1]
    if implementation != "xla":
        own = None if standard else chosen_resets
        y = kernel_steps(wide, rows, divide, implementation, own).astype(x.dtype)
        return y.mT if tall else y
    y, gram = divide(wide)
    if standard or chosen_resets is None:
        if blocks == 1:
            y = standard_steps(y, rows, gram=gram, precision=precision)
        else:
            y = blocked_standard_steps(y, rows, blocks=blocks, precision=precision)
    elif blocks == 1:
        y = gram_steps(y, rows, check_resets(chosen_resets), gram=gram, precision=precision)
    else:
        y = blocked_gram_steps(
            y, rows, check_resets(chosen_resets), blocks=blocks, precision=precision
        )
    y = y.astype(x.dtype)
    return y.mT if tall else y


def gram_steps(
    x: jax.Array,
    rows: tuple[Row, ...],
    resets: frozenset[int],
    *,
    gram: jax.Array | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> jax.Array:
    """Runs the Gram form on a normalised wide matrix.

    Args:
      x: (..., m, n), m <= n, singular values at most about 1.
      rows: one (a, b, c) a step.
      resets: steps before which Q is applied to X and R recomputed.
      gram: X X^T of the first step where it is known already, (..., m, m).
      precision: of the products.

    Returns:
      (..., m, n).
    """
    for part in segments(rows, resets):
        r = fused_product(x, x.mT, precision=precision) if gram is None else gram
        x = fused_product(gram_factor(r, part, precision=precision), x, precision=precision)
        gram = None
    return x


def gram_factor(
    r: jax.Array, rows: tuple[Row, ...], *, precision: jax.lax.PrecisionLike = None
) -> jax.Array:
    """The factor Q of steps without a reset: Q X is what the standard steps make of X.

    Args:
      r: X X^T, (..., m, m).
      rows: one (a, b, c) a step.
      precision: of the products.

    Returns:
      (..., m, m).
    """
    fused = partial(fused_product, precision=precision)
    identity = jnp.broadcast_to(jnp.eye(r.shape[-1], dtype=r.dtype), r.shape)
    q: jax.Array | None = None
    for i, (a, b, c) in enumerate(rows):
        z = polynomial(r, b, c, precision=precision)
        q = z + a * identity if q is None else fused(q, z, addend=q, beta=a)
        if i + 1 < len(rows):
            rz = fused(r, z, addend=r, beta=a)
            r = fused(z, rz, addend=rz, beta=a)
    return identity if q is None else q


def gram_factor_flops(m: int, rows: Sequence[Row]) -> int:
    """FLOPs of `gram_factor` on one matrix: 2 m^3 a product.

    Args:
      m: its rows.
      rows: one (a, b, c) a step.

    Returns:
      The number.

    Example:
      >>> gram_factor_flops(1000, [(1.0, 1.0, 1.0)] * 5) // 10**9
      34
    """
    products = sum(bool(c) for _, _, c in rows) + 3 * max(len(rows) - 1, 0)
    return 2 * m**3 * products
