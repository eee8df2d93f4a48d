"""Norms over the last two axes that neither overflow nor underflow, and the input checks."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

# Squares of larger entries, summed up, leave float32.
LARGEST = 1e15


def accumulation_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype in which sums over `dtype` are taken: float32 at least.

    Example:
      >>> accumulation_dtype(jnp.bfloat16)
      dtype('float32')
    """
    return jnp.promote_types(dtype, jnp.float32)


def check_matrix(x: jax.Array, caller: str) -> None:
    """Raises unless `x` is a real floating-point array of at least two dimensions.

    Args:
      x: the array, shape (..., m, n).
      caller: name of the public function, for the message.

    Raises:
      ValueError: fewer than two dimensions.
      TypeError: not a real floating-point dtype.
    """
    if x.ndim < 2:
        raise ValueError(
            f"{caller} works on matrices (..., m, n), got shape {x.shape}: reshape to two "
            "dimensions, or leave vectors to another method"
        )
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{caller} needs a real floating-point array, got {x.dtype}: cast it first")


def to_unit_peak(x: jax.Array, axes: tuple[int, ...] = (-2, -1)) -> tuple[jax.Array, jax.Array]:
    """Splits x = peak * y with 1 <= max|y| < 2, so that squares of y neither overflow nor vanish.

    `peak` is a power of two, so that the split is exact: y / norm(y) is bit for bit x / norm(x)
    wherever the latter is computable. It is a change of units, on which results do not depend,
    and so a constant to autodiff. A matrix without a normal number in it (all zeros, or
    subnormals, which most backends flush) comes back as zeros with peak 1.

    Args:
      x: (..., m, n), not of zero size.
      axes: the axes that one peak is taken over, instead of the last two.

    Returns:
      y in the accumulation dtype, (..., m, n), and peak, (..., 1, 1).
    """
    wide = x.astype(accumulation_dtype(x.dtype))
    largest = lax.stop_gradient(jnp.max(jnp.abs(wide), axis=axes, keepdims=True))
    peak = power_of_two_below(largest)
    return jnp.where(_alive(largest), wide / peak, 0.0), peak


def power_of_two_below(largest: jax.Array) -> jax.Array:
    """The largest power of two that is not above x >= 0; 1 where x is no normal number.

    Example:
      >>> power_of_two_below(jnp.array([5.0, 0.0])).tolist()
      [4.0, 1.0]
    """
    return _power_of_two(jnp.where(_alive(largest), largest, 1.0))


def _alive(largest: jax.Array) -> jax.Array:
    return ~(largest < jnp.finfo(largest.dtype).tiny)  # NaN counts as alive and stays visible


def _power_of_two(x: jax.Array) -> jax.Array:
    """The largest power of two that is not above a positive normal x: its exponent bits alone.

    By bits, because frexp and ldexp make a sharded program exchange the integer exponents.
    """
    info = jnp.finfo(x.dtype)
    integer = jnp.dtype(f"uint{info.bits}")
    exponent = ((1 << info.nexp) - 1) << info.nmant
    bits = lax.bitcast_convert_type(x, integer) & jnp.asarray(exponent, integer)
    return lax.bitcast_convert_type(bits, x.dtype)


def safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root of x >= 0 whose derivative at 0 is 0 instead of infinite.

    Example:
      >>> float(jax.grad(safe_sqrt)(0.0))
      0.0
    """
    positive = x != 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def fused_product(
    left: jax.Array,
    right: jax.Array,
    *,
    alpha: float = 1.0,
    addend: jax.Array | None = None,
    beta: float = 0.0,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """Computes alpha * left @ right + beta * addend, rounded once to the dtype of `left`.

    Products and sums of 16-bit operands are taken in float32: rounding each term by itself costs
    a digit, since the terms of the polynomials cancel.

    Args:
      left: (..., m, k).
      right: (..., k, n), of the same dtype.
      alpha: factor of the product.
      addend: (..., m, n), of the same dtype, or None.
      beta: factor of the addend.
      precision: of the product.

    Returns:
      (..., m, n) in the dtype of `left`.

    Example:
      >>> fused_product(jnp.eye(2), jnp.ones((2, 1)), alpha=2.0).tolist()
      [[2.0], [2.0]]
    """
    wide = accumulation_dtype(left.dtype)
    total = jnp.matmul(left, right, precision=precision, preferred_element_type=wide)
    total = total if alpha == 1.0 else alpha * total
    if addend is not None:
        total = total + beta * addend.astype(wide)
    return total.astype(left.dtype)


def frobenius_norm(x: jax.Array, *, keepdims: bool = True) -> jax.Array:
    """Frobenius norm sqrt(sum_ij x_ij^2) over the last two axes, for any scale of x.

    The entries are divided by their largest magnitude before they are squared, and summed in
    float32 at least. Zero matrices have norm 0 and gradient 0.

    Args:
      x: (..., m, n), floating point.
      keepdims: keep the two reduced axes with size 1.

    Returns:
      The norms in the dtype of x, shape (..., 1, 1), or (...) without `keepdims`.

    Raises:
      ValueError: fewer than two dimensions.
      TypeError: not a real floating-point dtype.

    Example:
      >>> float(frobenius_norm(jnp.array([[3e-30, 4e-30]]), keepdims=False))  # doctest: +ELLIPSIS
      5.0...e-30
    """
    check_matrix(x, "frobenius_norm")
    if 0 in x.shape[-2:]:
        norm = jnp.zeros((*x.shape[:-2], 1, 1), x.dtype)
    else:
        y, peak = to_unit_peak(x)
        norm = (peak * safe_sqrt(jnp.sum(y * y, axis=(-2, -1), keepdims=True))).astype(x.dtype)
    return norm if keepdims else norm[..., 0, 0]


def norm_over(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Euclidean norm over any axes, which keep size 1, for any scale of x.

    Args:
      x: any real floating-point array.
      axes: the axes summed over; none gives magnitudes.

    Returns:
      The norms, in float32 at least.

    Example:
      >>> norm_over(jnp.array([[3.0, 1.0], [4.0, 0.0]]) * 2.0**100, (0,)).tolist() == [
      ...     [5 * 2.0**100, 2.0**100]
      ... ]
      True
    """
    if x.size == 0:
        return jnp.sum(x.astype(accumulation_dtype(x.dtype)), axis=axes, keepdims=True)
    _, peak = to_unit_peak(x, axes)
    # Not the split's own quotient: its choice of 0 for entries whose squares vanish anyway makes
    # compilers write it to memory.
    y = x.astype(peak.dtype) / peak
    return peak * safe_sqrt(jnp.sum(y * y, axis=axes, keepdims=True))


def unit_over(x: jax.Array, axes: tuple[int, ...], eps: float | jax.Array = 0.0) -> jax.Array:
    """Divides by the Euclidean norm over any axes, for any scale of x; zeros stay zeros.

    Args:
      x: any real floating-point array.
      axes: the axes that one norm is taken over.
      eps: lower bound of the norm.

    Returns:
      x / max(norm, eps), in float32 at least.

    Example:
      >>> unit_over(jnp.array([[-(2.0**100), 0.0], [0.0, 0.0]]), (0,)).tolist()
      [[-1.0, 0.0], [0.0, 0.0]]
    """
    if x.size == 0:
        return x.astype(accumulation_dtype(x.dtype))
    y, peak = to_unit_peak(x, axes)
    norm = safe_sqrt(jnp.sum(y * y, axis=axes, keepdims=True))
    if not isinstance(eps, float) or eps > 0.0:
        norm = jnp.maximum(norm, eps / peak)
    return y / jnp.where(norm == 0, 1.0, norm)
