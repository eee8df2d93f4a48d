"""Orthonormal bases of tall panels, and the power iteration that follows a subspace with them."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.norms import check_matrix, unit_over
from optkit.linalg.one_by_one import one_by_one

QrMethod = Literal["qr", "cqr", "rcqr"]

# Rows of the sketch: a quarter more than columns, in blocks that fill an accelerator's tile.
_SKETCH_BLOCK = 128
_OVERSAMPLING = 1.25
_SKETCH_SEED = 0x5EED


def orthonormalize(
    y: jax.Array,
    method: QrMethod = "cqr",
    *,
    key: jax.Array | None = None,
    precision: lax.PrecisionLike = "highest",
) -> jax.Array:
    """Returns P of the QR decomposition Y = P R whose R has a positive diagonal.

    Columns are divided by their norms, then

    * "qr": Householder;
    * "cqr": ``C = chol(Y^T Y)``, ``Y <- Y C^-T``, three times, with a shift the first two times:
      products only, for accelerators;
    * "rcqr": ``R = qr(S Y).R`` of a Gaussian sketch S of some 1.25 r rows, then ``Y R^-1`` and one
      Cholesky-QR; Householder where the sketch would have no fewer rows than Y.

    In exact arithmetic the three agree, whatever the sketch. A column that depends on those before
    it (within rounding: 8 eps sqrt(n), and 4 eps r for "cqr") has no direction of its own; its
    column of P is zero, where a plain QR would invent one.

    Args:
      y: (..., n, r) floating point with n >= r; leading axes are a batch.
      method: which algorithm.
      key: PRNG key of the sketch, for "rcqr" only; None for a fixed one.
      precision: of the products.

    Returns:
      P of the shape and dtype of y (16-bit inputs are computed in float32): P^T P is the identity
      but for zero columns.

    Raises:
      ValueError: more columns than rows, or unknown method.
      TypeError: not a real floating-point dtype.

    Example:
      >>> y = jnp.array([[0.0, 3.0, 0.0], [2.0, 1.0, 4.0], [0.0, 0.0, 0.0]])
      >>> (orthonormalize(y).round(3) + 0.0).tolist()  # the third column is twice the first
      [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

    Reference: Fukaya et al., arXiv 1809.11085 (shifted Cholesky-QR); Balabanov and Grigori, arXiv
    2011.05090 (a sketch as its preconditioner).
    """
    y = jnp.asarray(y)
    check_matrix(y, "orthonormalize")
    if method not in get_args(QrMethod):
        raise ValueError(f"method must be one of {get_args(QrMethod)}, got {method!r}")
    rows, columns = y.shape[-2:]
    if rows < columns:
        raise ValueError(
            f"orthonormalize needs at least as many rows as columns, got shape {y.shape}: "
            "transpose it, or keep fewer columns"
        )
    if y.size == 0:
        return y
    unit = unit_over(y, (-2,))
    eps = float(jnp.finfo(unit.dtype).eps)
    cut = 8.0 * eps * math.sqrt(rows)
    sketched = _SKETCH_BLOCK * math.ceil(_OVERSAMPLING * columns / _SKETCH_BLOCK)
    if method == "cqr":
        basis, own = _cholesky_qr(unit, 2.0 * eps * columns, 3, precision)
        cut = max(cut, 4.0 * eps * columns)
    elif method == "rcqr" and sketched < rows:
        key = jax.random.key(_SKETCH_SEED) if key is None else key
        sketch = jax.random.normal(key, (sketched, rows), unit.dtype) / math.sqrt(sketched)
        basis, own = _sketched_qr(unit, sketch, cut, precision)
    else:
        basis, own = _householder_qr(unit, cut)
    # NaN counts as a direction and stays visible.
    return jnp.where(jnp.abs(own) <= cut, 0.0, basis).astype(y.dtype)


def power_iteration(
    a: jax.Array,
    q: jax.Array,
    iterations: int = 1,
    method: QrMethod = "cqr",
    *,
    key: jax.Array | None = None,
    precision: lax.PrecisionLike = "highest",
) -> tuple[jax.Array, jax.Array]:
    """Follows the leading singular subspace of A from a basis of its row space.

    1. ``P = orthonormalize(A Q)``; 2. ``R = A^T P``; again with R in place of Q.

    ``P R^T`` is then the part of A whose columns lie in the range of P: a low-rank approximation of
    A, and A itself when there are as many columns as the rank of A.

    Args:
      a: (..., n, m) floating point.
      q: (..., m, r) with r <= n: any matrix; scale and signs of its columns do not matter.
      iterations: how often.
      method: see ``orthonormalize``.
      key: see ``orthonormalize``.
      precision: of the products.

    Returns:
      P (..., n, r) and R (..., m, r).

    Example:
      >>> a = jnp.outer(jnp.array([3.0, 4.0]), jnp.array([1.0, 0.0, 2.0]))
      >>> p, r = power_iteration(a, jnp.ones((3, 1)))
      >>> bool(jnp.allclose(p @ r.T, a))
      True

    Reference: Halko, Martinsson, Tropp, arXiv 0909.4061; Vogels et al., PowerSGD, arXiv 1905.13727.
    """
    for index in range(iterations):
        # Lengths do not matter to P; unit ones keep powers of A from overflowing.
        start = unit_over(q, (-2,)) if index else q
        image = jnp.matmul(a, start, precision=precision)
        p = orthonormalize(image, method, key=key, precision=precision)
        q = jnp.matmul(a.mT, p, precision=precision)
    return p, q


def _diagonal(x: jax.Array) -> jax.Array:
    """The diagonal as a row, (..., 1, r)."""
    # Not by indices: a gather would lose the partition of a batch on Explicit axes.
    eye = jnp.eye(x.shape[-1], dtype=x.dtype)
    return jnp.sum(x * _as_batch(eye, x), axis=-2, keepdims=True)


def _as_batch(x: jax.Array, like: jax.Array) -> jax.Array:
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def raw_qr(y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns reflectors below R in one array (..., n, r), and their factors."""
    # Not the finished Q and R: their lowering fails in jax 0.10 for batches on Explicit axes.
    reflectors, factors = one_by_one(lambda a: jnp.linalg.qr(a, mode="raw"), y)
    return reflectors.mT, factors


def reflections(y: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what ``raw_qr`` does of matrices with no more columns than rows, and R's diagonal."""
    reflectors, factors = raw_qr(y)
    return reflectors, factors, _diagonal(reflectors[..., : y.shape[-1], :])


def householder_product(reflectors: jax.Array, factors: jax.Array) -> jax.Array:
    """Returns Q of ``reflections``."""

    def product(reflectors: jax.Array, factors: jax.Array) -> jax.Array:
        return lax.linalg.householder_product(reflectors, factors[..., 0, :])

    return one_by_one(product, reflectors, factors[..., None, :])


def _householder_qr(y: jax.Array, cut: float) -> tuple[jax.Array, jax.Array]:
    """As ``_cholesky_qr``, for columns that end at ``cut``."""
    reflectors, factors, own = reflections(y)
    basis = householder_product(reflectors, factors)

    def in_turn() -> tuple[jax.Array, jax.Array]:
        turns, lengths = _gram_schmidt(jnp.triu(reflectors[..., : y.shape[-1], :]), cut)
        return jnp.matmul(basis, turns, precision="highest"), lengths

    # Reflections make up a direction for a dependent column, and what the columns behind it have of
    # that direction is missing from them: then the columns of R are taken one by one.
    return lax.cond(
        jnp.any(jnp.abs(own) <= cut), in_turn, lambda: (jnp.where(own < 0, -basis, basis), own)
    )


def _gram_schmidt(x: jax.Array, cut: float) -> tuple[jax.Array, jax.Array]:
    """As ``_cholesky_qr``; slow, one column after the other."""

    def step(j: jax.Array, done: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        basis, lengths = done
        column = lax.dynamic_slice_in_dim(x, j, 1, -1)
        for _ in range(2):  # the second time takes what rounding left
            inside = jnp.matmul(basis.mT, column, precision="highest")
            column -= jnp.matmul(basis, inside, precision="highest")
        length = jnp.linalg.norm(column, axis=-2, keepdims=True)
        null = length <= cut
        column = jnp.where(null, 0.0, column / jnp.where(null, 1.0, length))
        return (
            lax.dynamic_update_slice_in_dim(basis, column, j, -1),
            lax.dynamic_update_slice_in_dim(lengths, length, j, -1),
        )

    return lax.fori_loop(0, x.shape[-1], step, (jnp.zeros_like(x), jnp.zeros_like(x[..., :1, :])))


def _cholesky(x: jax.Array) -> jax.Array:
    # By vmap, since its lowering for batches on Explicit axes fails in jax 0.10.
    factor: Callable[[jax.Array], jax.Array] = partial(lax.linalg.cholesky, symmetrize_input=False)

    def batched(x: jax.Array) -> jax.Array:
        whole = factor
        for _ in x.shape[:-2]:
            whole = jax.vmap(whole)
        return whole(x)

    return one_by_one(batched, x)


def _cholesky_qr(
    y: jax.Array, shift: float, passes: int, precision: lax.PrecisionLike
) -> tuple[jax.Array, jax.Array]:
    """Returns P and the diagonal of R of Y = P R; all passes but the last with a shift.

    A pass leaves of a column of unit length, of which those before it do not span s, about
    s / sqrt(s^2 + shift). So columns of s < shift are shorter than sqrt(shift) after one pass, and
    shorter than 0.3 after two, and every other one then has a length near 1.
    """
    own = jnp.ones((*y.shape[:-2], 1, y.shape[-1]), y.dtype)
    for index in range(passes):
        gram = jnp.matmul(y.mT, y, precision=precision)
        last = index == passes - 1
        null = _diagonal(gram) < (0.1 if last else shift if index else -1.0)
        y, gram = jnp.where(null, 0.0, y), jnp.where(null | null.mT, 0.0, gram)
        shift = 0.0 if last else shift
        eye = _as_batch(jnp.eye(y.shape[-1], dtype=y.dtype), gram)
        gram = gram + jnp.where(null, 1.0, shift).astype(y.dtype) * eye
        lower = _cholesky(gram)
        solve = partial(lax.linalg.triangular_solve, lower=True, transpose_a=True)
        y = one_by_one(solve, lower, y)
        own = jnp.where(null, 0.0, own * _diagonal(lower))
    return y, own


def _sketched_qr(
    y: jax.Array, sketch: jax.Array, cut: float, precision: lax.PrecisionLike
) -> tuple[jax.Array, jax.Array]:
    """As ``_cholesky_qr``, after a division by the R of the sketched panel."""
    r, _, own = reflections(jnp.matmul(sketch, y, precision=precision))
    r = r[..., : y.shape[-1], :]
    # Dividing by a huge number makes a dependent column zero and leaves the others as they are.
    null = jnp.abs(own) <= cut
    eye = _as_batch(jnp.eye(y.shape[-1], dtype=bool), r)
    r = jnp.where(eye & null, 1e30, r)
    y = one_by_one(lax.linalg.triangular_solve, r, y)  # looks at the upper triangle only
    y = jnp.where(own < 0, -y, y)
    basis, rest = _cholesky_qr(y, 0.0, 1, precision)
    return basis, jnp.where(null, 0.0, own * rest)
