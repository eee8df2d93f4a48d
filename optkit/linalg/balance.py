"""Rows and columns of a matrix brought to equal norms, and matrices to a given RMS."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from optkit.linalg.norms import accumulation_dtype, check_matrix, safe_sqrt, to_unit_peak

Order = Literal["simultaneous", "row_col", "col_row"]
Number = float | jax.Array


def line_norms(x: jax.Array, axis: int, p: Number = 2.0) -> jax.Array:
    """p-norms of the rows (axis -1) or the columns (axis -2), for any scale of each of them.

    Args:
      x: (..., m, n), floating point, not of zero size.
      axis: the axis that is summed over.
      p: exponent, at least 1; infinity takes the largest magnitude.

    Returns:
      (..., m, 1) or (..., 1, n).

    Example:
      >>> line_norms(jnp.array([[3e30, 4e30], [0.0, 1e-30]]), -1, math.inf)[:, 0].tolist()
      [4.0...e+30, 1.0...e-30]
    """
    peak = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    unit = jnp.abs(x) / jnp.where(peak > 0, peak, 1.0)
    if not isinstance(p, jax.Array):
        if p == math.inf:
            return peak
        if p == 2.0:
            return peak * safe_sqrt(jnp.sum(unit * unit, axis=axis, keepdims=True))
    # At least 1 wherever the line is not zero.
    return peak * jnp.maximum(jnp.sum(unit**p, axis=axis, keepdims=True), 1.0) ** (1.0 / p)


def balance(
    x: jax.Array,
    p: Number = 2.0,
    *,
    order: Order = "simultaneous",
    exponent: Number = 0.5,
    iterations: int = 1,
    eps: Number = 0.0,
) -> jax.Array:
    """Divides each row and each column by a power of its norm.

    Each iteration, with r_i the p-norm of row i and c_j that of column j:

    * "simultaneous": ``x_ij <- x_ij / ((r_i + eps)**exponent * (c_j + eps)**exponent)``, both norms
      of the same x;
    * "row_col": the rows first, then the columns of the result; "col_row": the other way round.

    With exponent 1/2 and many iterations all rows and all columns of a matrix without zero entries
    come to one norm each, and the result does not depend, up to a number, on positive factors that
    its rows and columns had. A single iteration does a good part of that. Zero rows and columns
    stay zero.

    Args:
      x: (..., m, n), floating point.
      p: exponent of the norm, at least 1; ``math.inf`` for the largest magnitude.
      order: see above.
      exponent: power of the norms; 1 normalises.
      iterations: how often.
      eps: added to the norms, in units of x; 0 divides safely at any scale.

    Returns:
      (..., m, n) in the dtype of x. With eps 0 its scale means nothing: x is brought to a largest
      magnitude between 1 and 2 first.

    Raises:
      ValueError: fewer than two dimensions, or an unknown order.
      TypeError: not a real floating-point dtype.

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> scaled = jnp.array([[1.0], [100.0]]) * x * jnp.array([[5.0, 0.1]])
      >>> a, b = (balance(y, iterations=40) for y in (x, scaled))
      >>> bool(jnp.allclose(a / a[0, 0], b / b[0, 0], atol=1e-4))
      True
    """
    check_matrix(x, "balance")
    if order not in get_args(Order):
        raise ValueError(f"order={order!r} is not one of {', '.join(get_args(Order))}")
    if 0 in x.shape:
        return x
    y = x.astype(accumulation_dtype(x.dtype))
    if not isinstance(eps, jax.Array) and eps == 0.0:
        y, _ = to_unit_peak(y)
    for _ in range(iterations):
        if order == "simultaneous":
            factors = _factor(y, -1, p, exponent, eps) * _factor(y, -2, p, exponent, eps)
            y = y * factors
            continue
        for axis in (-1, -2) if order == "row_col" else (-2, -1):
            y = y * _factor(y, axis, p, exponent, eps)
    return y.astype(x.dtype)


def _factor(x: jax.Array, axis: int, p: Number, exponent: Number, eps: Number) -> jax.Array:
    norm = line_norms(x, axis, p) + eps
    return jnp.where(norm > 0, jnp.where(norm > 0, norm, 1.0) ** -exponent, 0.0)


def to_rms(x: jax.Array, rms: Number, *, eps: Number = 0.0) -> jax.Array:
    """Scales each matrix to a root mean square of its entries, for any scale of x.

    Args:
      x: (..., m, n), floating point; zero matrices stay zero.
      rms: what the root mean square shall be.
      eps: added to the Frobenius norm that x is divided by.

    Returns:
      (..., m, n) in the dtype of x.

    Example:
      >>> to_rms(jnp.array([[3e30, 4e30]]), 5.0).round(3).tolist()
      [[4.24..., 5.65...]]
    """
    if 0 in x.shape:
        return x
    y, peak = to_unit_peak(x)
    norm = safe_sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True)) + eps / peak
    wanted = rms * math.sqrt(math.prod(x.shape[-2:]))
    factor = jnp.where(norm > 0, wanted / jnp.where(norm > 0, norm, 1.0), 0.0)
    return (y * factor).astype(x.dtype)
