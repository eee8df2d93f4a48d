"""Kronecker-factored whitening: triangular or diagonal factors, fitted by multiplicative steps."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.kronecker import apply_along, tensor_gram
from optkit.linalg.norms import power_of_two_below, to_unit_peak
from optkit.linalg.one_by_one import one_by_one

Factors = Sequence[jax.Array]


def _batch(factors: Factors, x: jax.Array) -> int:
    return x.ndim - len(factors)


def _is_diagonal(factor: jax.Array, batch: int) -> bool:
    return factor.ndim == batch + 1


def _axes(factors: Factors) -> range:
    """Axis of each factor, counted from the end."""
    return range(-len(factors), 0)


def kron_apply(
    factors: Factors, x: jax.Array, *, transpose: bool = False, precision: Any | None = None
) -> jax.Array:
    """Multiplies a tensor along every axis by that axis's factor.

    Args:
      factors: one an axis: upper triangular ``(*batch, d, d)``, or a diagonal ``(*batch, d)``.
      x: ``(*batch, d_1, ..., d_k)``.
      transpose: by the transposes instead.
      precision: of the products.

    Returns:
      An array like ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> factors = (jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([3.0, 4.0]))
      >>> kron_apply(factors, jnp.eye(2)).tolist()
      [[3.0, 8.0], [0.0, 4.0]]
    """
    batch = _batch(factors, x)
    for axis, factor in zip(_axes(factors), factors, strict=True):
        if _is_diagonal(factor, batch):
            x = x * _spread(factor, x, axis)
        else:
            own = factor.mT if transpose else factor
            x = apply_along(x, own, axis, len(factors), precision=precision)
    return x


def kron_solve_transposed(factors: Factors, x: jax.Array) -> jax.Array:
    """Multiplies a tensor along every axis by the inverse transpose of that axis's factor.

    Args:
      factors: as for ``kron_apply``; no entry of a diagonal may be 0.
      x: ``(*batch, d_1, ..., d_k)``.

    Returns:
      An array like ``x``.

    Example:
      >>> import jax.numpy as jnp
      >>> factors = (jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([2.0, 4.0]))
      >>> kron_solve_transposed(factors, jnp.eye(2)).tolist()
      [[0.5, 0.0], [-1.0, 0.25]]
    """
    batch = _batch(factors, x)
    for axis, factor in zip(_axes(factors), factors, strict=True):
        if _is_diagonal(factor, batch):
            x = x / _spread(factor, x, axis)
        else:
            x = _solve(factor, x, axis, batch)
    return x


_solve_left = partial(lax.linalg.triangular_solve, left_side=True, transpose_a=True)


def _solve(factor: jax.Array, x: jax.Array, axis: int, batch: int) -> jax.Array:
    if x.ndim == batch + 2 and axis == -1:
        return one_by_one(lax.linalg.triangular_solve, factor, x)  # y Q = x
    if x.ndim == batch + 2:
        return one_by_one(_solve_left, factor, x)
    moved = jnp.moveaxis(x, axis, batch)
    flat = moved.reshape(*moved.shape[: batch + 1], -1)
    done = one_by_one(_solve_left, factor, flat)
    return jnp.moveaxis(done.reshape(moved.shape), batch, axis)


def _spread(v: jax.Array, x: jax.Array, axis: int) -> jax.Array:
    """``(*batch, d)`` shaped so that it multiplies a tensor along an axis."""
    ones = [1] * (x.ndim - v.ndim + 1)
    ones[axis] = v.shape[-1]
    return v.reshape(*v.shape[:-1], *ones)


def _sum_to(x: jax.Array, axis: int, batch: int) -> jax.Array:
    """Sums over all axes of a tensor but one: the diagonal of a Gram matrix, from squares."""
    return jnp.sum(x, axis=tuple(i for i in range(batch, x.ndim) if i != x.ndim + axis))


def norm_lower_bound(a: jax.Array, *, precision: Any | None = None) -> jax.Array:
    """A lower bound of the spectral norm of symmetric matrices, at most sqrt(2) below it.

    Half a power iteration from the row of the largest norm.

    Args:
      a: ``(..., n, n)``, symmetric and positive semidefinite.
      precision: of the products.

    Returns:
      ``(...)``.

    Example:
      >>> import jax.numpy as jnp
      >>> float(norm_lower_bound(jnp.diag(jnp.array([3.0, 1.0]))))
      3.0
    """
    y, peak = to_unit_peak(a)
    lengths = jnp.sum(y * y, axis=-1)
    # A product with the row's unit vector, which needs no rule for gathers on meshes.
    first = jnp.argmax(lengths, axis=-1)
    places = lax.broadcasted_iota(first.dtype, lengths.shape, lengths.ndim - 1)
    chosen = places == first[..., None]
    row = jnp.matmul(chosen[..., None, :].astype(y.dtype), y, precision="highest")
    x = jnp.matmul(row, y, precision=precision)
    size = jnp.sqrt(jnp.sum(x * x, axis=-1, keepdims=True))
    x = x / jnp.where(size > 0, size, 1.0)
    out = jnp.matmul(x, y, precision=precision)
    return jnp.sqrt(jnp.sum(out * out, axis=(-2, -1))) * peak[..., 0, 0]


def fit_whitening(
    factors: Factors,
    grad: jax.Array,
    probe: jax.Array,
    rate: float | jax.Array,
    *,
    precision: Any | None = None,
) -> tuple[jax.Array, ...]:
    """One step of the factors towards those with which ``Q^T Q`` whitens the gradient.

    With ``A`` the gradient multiplied by the factors along all axes and ``B`` the probe by their
    inverse transposes, and T1, T2 the Gram matrices of A and B for an axis:
    ``Q <- Q - rate * triu(T1 - T2) Q / bound(T1 + T2)``, the bound being ``norm_lower_bound``; of
    a diagonal ``Q <- Q - rate * (T1 - T2) Q / max(T1 + T2)``. The expectation of the step is zero
    where ``E[A A^T] = E[B B^T]`` for every axis. Both are brought to one power of two first, which
    changes neither ratio, so that gradients of any size can be squared.

    Args:
      factors: as for ``kron_apply``.
      grad: ``(*batch, d_1, ..., d_k)``.
      probe: standard normal numbers like it.
      rate: below 0.7, or a diagonal entry may change its sign.
      precision: of the products.

    Returns:
      The new factors.

    Example:
      >>> import jax.numpy as jnp
      >>> new = fit_whitening((jnp.ones(1),), jnp.array([3.0]), jnp.array([1.0]), 0.1)
      >>> round(float(new[0][0]), 4)  # 1 - 0.1 * (9 - 1) / (9 + 1)
      0.92
    """
    batch = _batch(factors, grad)
    a = kron_apply(factors, grad, precision=precision)
    b = kron_solve_transposed(factors, probe)
    inside = tuple(range(batch, grad.ndim))
    largest = jnp.maximum(
        jnp.max(jnp.abs(a), axis=inside, keepdims=True),
        jnp.max(jnp.abs(b), axis=inside, keepdims=True),
    )
    peak = power_of_two_below(largest)
    a, b = a / peak, b / peak
    out = []
    for axis, factor in zip(_axes(factors), factors, strict=True):
        if _is_diagonal(factor, batch):
            one, two = _sum_to(a * a, axis, batch), _sum_to(b * b, axis, batch)
            bound = jnp.max(one + two, axis=-1, keepdims=True)
            out.append(factor - rate * (one - two) * factor / _above(bound))
            continue
        one = tensor_gram(a, axis, len(factors), precision=precision)
        two = tensor_gram(b, axis, len(factors), precision=precision)
        bound = norm_lower_bound(one + two, precision=precision)[..., None, None]
        step = jnp.matmul(jnp.triu(one - two), factor, precision=precision)
        out.append(factor - rate * step / _above(bound))
    return tuple(out)


def _above(x: jax.Array) -> jax.Array:
    """What can be divided by."""
    return x + jnp.finfo(x.dtype).tiny


def balanced(factors: Factors, batch: int) -> tuple[jax.Array, ...]:
    """Factors whose largest entries are equal, with the same product.

    Args:
      factors: as for ``kron_apply``.
      batch: number of batch axes.

    Returns:
      The factors, each multiplied by a number; a single one is left alone.

    Example:
      >>> import jax.numpy as jnp
      >>> [float(q[0]) for q in balanced((jnp.ones(1), 4 * jnp.ones(2)), 0)]
      [2.0, 2.0]
    """
    if len(factors) < 2:
        return tuple(factors)
    sizes = [jnp.max(jnp.abs(q), axis=tuple(range(batch, q.ndim))) for q in factors]
    logs = [jnp.log(size) for size in sizes]
    mean = sum(logs[1:], logs[0]) / len(logs)
    return tuple(
        q * jnp.exp(mean - own).reshape(own.shape + (1,) * (q.ndim - batch))
        for q, own in zip(factors, logs, strict=True)
    )


def first_factors(
    shape: Sequence[int], diagonal: Sequence[bool], scale: float, dtype: Any = jnp.float32
) -> tuple[jax.Array, ...]:
    """Multiples of identities whose product along all axes is ``scale``.

    Args:
      shape: axes of the tensor, without batch axes.
      diagonal: which axes keep a diagonal only.
      scale: the product.
      dtype: of the factors.

    Returns:
      One factor an axis.

    Example:
      >>> [q.tolist() for q in first_factors((2, 1), (False, True), 4.0)]
      [[[2.0, 0.0], [0.0, 2.0]], [2.0]]
    """
    each = math.pow(scale, 1.0 / max(1, len(shape)))
    return tuple(
        jnp.full((size,), each, dtype) if flat else each * jnp.eye(size, dtype=dtype)
        for size, flat in zip(shape, diagonal, strict=True)
    )
