"""Bases of the subspaces that low-rank methods work in: of a matrix, or drawn at random."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.norms import check_matrix, to_unit_peak, unit_over
from optkit.linalg.one_by_one import one_by_one
from optkit.linalg.subspace import orthonormalize, power_iteration

RandomKind = Literal["gaussian", "orthonormal", "permutation"]

_OVERSAMPLING = 8
_PASSES = 2


def canonical_sign(basis: jax.Array) -> jax.Array:
    """Turns every column so that its entry of largest magnitude is positive.

    A singular vector is defined up to its sign. Moments that live on through a change of the basis
    depend on it, and so would replicas and devices.

    Args:
      basis: (..., k, r) floating point.

    Returns:
      The same columns, some of them negated.

    Example:
      >>> canonical_sign(jnp.array([[0.6, -0.6], [-0.8, 0.8]])).tolist()
      [[-0.6..., -0.6...], [0.8..., 0.8...]]
    """
    largest, least = (f(basis, axis=-2, keepdims=True) for f in (jnp.max, jnp.min))
    return jnp.where(largest >= -least, basis, -basis)


def leading_basis(x: jax.Array, rank: int) -> jax.Array:
    """Returns the first left singular vectors, with canonical signs, for any scale of x.

    Args:
      x: (..., k, n) floating point; leading axes are a batch.
      rank: how many, at most min(k, n).

    Returns:
      (..., k, rank) with orthonormal columns, in float32 at least; those that belong to singular
      values of 0 are arbitrary.

    Raises:
      ValueError: a rank that the matrix does not have.

    Example:
      >>> leading_basis(jnp.array([[0.0, 1.0], [-3.0, 0.0]]), 1).tolist()
      [[0.0], [1.0]]
    """
    check_matrix(x, "leading_basis")
    _check_rank(x, rank)
    y, _ = to_unit_peak(x)

    # By vmap: batches on Explicit axes do not lower in jax 0.10.
    def left(a: jax.Array) -> jax.Array:
        svd: Callable[[jax.Array], jax.Array] = lambda a: jnp.linalg.svd(a, full_matrices=False)[0]  # noqa: E731
        for _ in a.shape[:-2]:
            svd = jax.vmap(svd)
        return svd(a)

    return canonical_sign(one_by_one(left, y)[..., :rank])


def randomized_basis(x: jax.Array, rank: int, key: jax.Array) -> jax.Array:
    """Approximates ``leading_basis`` by products with a random sketch.

    1. ``Y = X Omega`` with a Gaussian Omega of rank + 8 columns; 2. ``Y <- X X^T orth(Y)``, twice;
    3. ``Q = orth(Y)``; 4. the first left singular vectors of ``Q^T X``, times Q.

    Args:
      x: (..., k, n) floating point.
      rank: how many directions, at most min(k, n).
      key: PRNG key, one for the whole batch.

    Returns:
      (..., k, rank) with orthonormal columns and canonical signs, in float32 at least.

    Raises:
      ValueError: a rank that the matrix does not have.

    Example:
      >>> x = jnp.outer(jnp.array([3.0, 4.0, 0.0]), jnp.ones(5))
      >>> basis = randomized_basis(x, 1, jax.random.key(0))
      >>> bool(jnp.allclose(basis[:, 0], jnp.array([0.6, 0.8, 0.0])))
      True

    Reference: Halko, Martinsson, Tropp, arXiv 0909.4061; GaLore 2, arXiv 2504.20437.
    """
    check_matrix(x, "randomized_basis")
    _check_rank(x, rank)
    y, _ = to_unit_peak(x)
    size = min(rank + _OVERSAMPLING, *x.shape[-2:])
    sketch = jax.random.normal(key, (x.shape[-1], size), y.dtype)
    sketch = jnp.broadcast_to(sketch, (*x.shape[:-2], *sketch.shape))
    q, right = power_iteration(y, sketch, 1 + _PASSES, "qr")
    inner = leading_basis(right.mT, min(rank, size))
    return canonical_sign(jnp.matmul(q, inner, precision="highest"))


def tracked_basis(x: jax.Array, basis: jax.Array) -> jax.Array:
    """Moves a basis towards the leading left singular vectors by one power iteration.

    ``P <- orth(X X^T P)`` with a positive diagonal in the QR decomposition: called with matrices
    that change slowly, it follows them. Where X is blind to a direction, its column is 0.

    Args:
      x: (..., k, n) floating point.
      basis: (..., k, r).

    Returns:
      (..., k, r) with orthonormal columns but for zeros.

    Example:
      >>> x = jnp.diag(jnp.array([4.0, 1.0]))
      >>> tracked_basis(x, jnp.ones((2, 1))).round(3).tolist()
      [[0.998...], [0.062...]]

    Reference: Robert et al., LDAdam, arXiv 2410.16103.
    """
    check_matrix(x, "tracked_basis")
    y, _ = to_unit_peak(x)
    product = partial(jnp.matmul, precision="highest")
    return orthonormalize(product(y, product(y.mT, basis)), "qr")


def subspace_gradient(
    x: jax.Array, basis: jax.Array, *, precision: lax.PrecisionLike = "highest"
) -> jax.Array:
    """Returns the derivative by P of what a subspace misses, ``norm(Y - P P^T Y)**2``.

    With ``Y = X/norm(X)`` and ``A = Y^T P`` it is ``2*Y A (P^T P) + 2*P (A^T A) - 4*Y A``: P need
    not be orthonormal. Of zeros it is 0.

    Args:
      x: (..., k, n) floating point, of any scale.
      basis: P, (..., k, r).
      precision: of the products.

    Returns:
      (..., k, r).

    Example:
      >>> x = jnp.array([[0.0, 3.0], [0.0, 0.0]])
      >>> subspace_gradient(x, jnp.array([[0.5], [1.0]])).tolist()  # further along the first axis
      [[-0.5], [0.5]]

    Reference: Liang et al., Online Subspace Descent, arXiv 2408.12857.
    """
    check_matrix(x, "subspace_gradient")
    product = partial(jnp.matmul, precision=precision)
    y = unit_over(x, (-2, -1))
    image = product(y.mT, basis)
    back = product(y, image)
    inside = product(back, product(basis.mT, basis)) + product(basis, product(image.mT, image))
    return 2.0 * inside - 4.0 * back


def random_basis(
    key: jax.Array, shape: tuple[int, ...], kind: RandomKind = "gaussian"
) -> jax.Array:
    """Draws a basis that knows nothing of any matrix: it need not be stored, the key is enough.

    * "gaussian": independent normal numbers of variance 1/r, so that lengths are kept on average;
    * "orthonormal": the Q of a Gaussian's QR decomposition with positive diagonal, uniform among
      all orthonormal bases;
    * "permutation": r different unit vectors.

    Args:
      key: PRNG key.
      shape: (..., k, r) with r <= k.
      kind: which.

    Returns:
      float32 of that shape.

    Raises:
      ValueError: an unknown kind, or more columns than rows of an orthonormal one.

    Example:
      >>> random_basis(jax.random.key(0), (3, 2), "permutation").sum(0).tolist()
      [1.0, 1.0]
    """
    if kind not in get_args(RandomKind):
        raise ValueError(f"kind must be one of {get_args(RandomKind)}, got {kind!r}")
    *batch, rows, columns = shape
    if kind == "permutation":
        keys = jax.random.split(key, tuple(batch)) if batch else key
        draw: Callable[[jax.Array], jax.Array] = lambda k: jax.random.permutation(k, rows)  # noqa: E731
        for _ in batch:
            draw = jax.vmap(draw)
        return unit_vectors(draw(keys)[..., :columns], rows)
    normal = jax.random.normal(key, shape, jnp.float32)
    if kind == "orthonormal":
        return orthonormalize(normal, "qr")
    return normal * max(columns, 1) ** -0.5


def unit_vectors(indices: jax.Array, size: int) -> jax.Array:
    """Returns the unit vectors of these indices as columns.

    Args:
      indices: (..., r) integers below ``size``.
      size: the dimension k.

    Returns:
      float32 (..., k, r).

    Example:
      >>> unit_vectors(jnp.array([2, 0]), 3).tolist()
      [[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    """
    each = lax.broadcasted_iota(jnp.int32, (*indices.shape[:-1], size, 1), indices.ndim - 1)
    return (each == indices[..., None, :]).astype(jnp.float32)


def _check_rank(x: jax.Array, rank: int) -> None:
    short = min(x.shape[-2:])
    if not 0 <= rank <= short:
        raise ValueError(
            f"a matrix of shape {x.shape[-2:]} has no rank {rank}; give at most {short}"
        )
