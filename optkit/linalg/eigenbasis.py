"""Eigenbases that follow slowly moving symmetric matrices, columns by decreasing eigenvalue."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.norms import to_unit_peak
from optkit.linalg.one_by_one import one_by_one
from optkit.linalg.subspace import householder_product, reflections

Refresh = Literal["qr", "eigh"]
# What is below this share of the largest is rounding, whose directions mean nothing.
_NULL = 1e-5


def eigenbasis(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors of symmetric matrices, and which matrices have finite ones.

    Where the rank is not full, the null space has any basis, and a factorisation returns one that
    is made of rounding. Here it is spanned by the projections of the first unit vectors.

    Args:
      a: ``(..., n, n)``, positive semidefinite; of zeros the basis is the identity.

    Returns:
      ``(..., n, n)`` with orthonormal columns by decreasing eigenvalue, and bool ``(...)``. Where
      it is False the basis is the identity.

    Example:
      >>> import jax.numpy as jnp
      >>> q, good = eigenbasis(jnp.diag(jnp.array([1.0, 4.0])))
      >>> abs(q).tolist(), bool(good)
      ([[0.0, 1.0], [1.0, 0.0]], True)
    """
    one = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    if not a.size:
        return one, jnp.ones(a.shape[:-2], bool)
    new = _eigenvectors(to_unit_peak(a)[0])
    good = jnp.all(jnp.isfinite(new), axis=(-2, -1))
    return jnp.where(good[..., None, None], new, one), good


def refreshed_eigenbasis(
    a: jax.Array, q: jax.Array, method: Refresh = "qr"
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A basis that has been followed one step further, and where its columns come from.

    With ``P = A Q`` and ``d = diag(Q^T P)``, columns by decreasing d:

    * "qr": ``qr(P)``, one step of a power iteration on all columns at once;
    * "eigh": the eigenvectors, whatever Q was.

    Args:
      a: ``(..., n, n)``, symmetric and positive semidefinite.
      q: ``(..., n, n)``, orthonormal.
      method: how.

    Returns:
      The new basis; int32 ``(..., n)``, the column of ``q`` whose place each new one takes; bool
      ``(...)``, which are finite. Of a matrix of zeros, or of one that gives nothing finite, the
      basis and the order of its columns stay. Null spaces as in ``eigenbasis``.

    Example:
      >>> import jax.numpy as jnp
      >>> q, order, _ = refreshed_eigenbasis(jnp.diag(jnp.array([1.0, 4.0])), jnp.eye(2))
      >>> abs(q).tolist(), order.tolist()
      ([[0.0, 1.0], [1.0, 0.0]], [1, 0])
    """
    n = a.shape[-1]
    still = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), q.shape[:-1])
    if not a.size:
        return q, still, jnp.ones(a.shape[:-2], bool)
    y, _ = to_unit_peak(a)
    p = jnp.matmul(y, q, precision="highest")
    order = jnp.argsort(-jnp.sum(q * p, axis=-2), axis=-1).astype(jnp.int32)
    if method == "qr":
        new, sizes = _qr(jnp.take_along_axis(p, order[..., None, :], axis=-1))
        new = _completed(new, sizes)
    else:
        new = _eigenvectors(y)
    good = jnp.all(jnp.isfinite(new), axis=(-2, -1))
    seen = good & jnp.any(y != 0, axis=(-2, -1))
    return (
        jnp.where(seen[..., None, None], new, q),
        jnp.where(seen[..., None], order, still),
        good,
    )


def _eigenvectors(a: jax.Array) -> jax.Array:
    values, vectors = one_by_one(jnp.linalg.eigh, a)
    return _completed(lax.rev(vectors, (a.ndim - 1,)), lax.rev(values, (a.ndim - 2,)))


def _qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns Q, and what of each column is orthogonal to those before it."""
    reflectors, factors, diagonal = reflections(x)
    return householder_product(reflectors, factors), jnp.abs(diagonal[..., 0, :])


def _completed(q: jax.Array, sizes: jax.Array) -> jax.Array:
    """Orthonormal columns, those of no size replaced by the projections of unit vectors."""
    # (NaN counts as seen, so that a factorisation that failed is not hidden.)
    seen = ~(sizes <= _NULL * jnp.max(sizes, axis=-1, keepdims=True))

    def fill(q: jax.Array, seen: jax.Array) -> jax.Array:
        held = jnp.where(seen[..., None, :], q, 0.0)
        one = jnp.broadcast_to(jnp.eye(q.shape[-1], dtype=q.dtype), q.shape)
        rest = one - jnp.matmul(held, held.mT, precision="highest")
        place = jnp.maximum(jnp.cumsum(~seen, axis=-1) - 1, 0)
        others = jnp.take_along_axis(rest, place[..., None, :], axis=-1)
        # Those that stay come first, so that the others are orthogonal to all of them.
        front = jnp.argsort(~seen, axis=-1, stable=True)
        mixed = jnp.where(seen[..., None, :], q, others)
        new, _ = _qr(jnp.take_along_axis(mixed, front[..., None, :], axis=-1))
        back = jnp.take_along_axis(new, jnp.argsort(front, axis=-1)[..., None, :], axis=-1)
        return jnp.where(seen[..., None, :], q, back)

    whole = jnp.all(seen)
    if not isinstance(whole, jax.core.Tracer):
        return q if bool(whole) else fill(q, seen)
    return lax.cond(whole, lambda q, _: q, fill, q, seen)
