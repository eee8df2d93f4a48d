"""The exact polar factor."""

from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from optkit.linalg.norms import check_matrix, to_unit_peak
from optkit.linalg.one_by_one import one_by_one

PolarMethod = Literal["svd", "qdwh"]


def polar(x: jax.Array, method: PolarMethod = "svd") -> jax.Array:
    """Exact polar factor U V^T of X = U S V^T (thin), with zero for the zero matrix.

    "svd" is the oracle and fine up to a few hundred rows; "qdwh" needs only products, QR and
    Cholesky. Both send every null direction of a rank-deficient matrix to an arbitrary orthonormal
    one, where `newton_schulz` leaves it null. The derivative is that of the polar factor itself,
    finite for repeated singular values; null directions contribute nothing to it.

    Args:
      x: (..., m, n) floating point; leading axes are a batch.
      method: "svd" or "qdwh".

    Returns:
      The factor, of the shape and dtype of x (16-bit inputs are computed in float32).

    Raises:
      ValueError: bad shape or unknown method.
      TypeError: not a real floating-point dtype.

    Example:
      >>> polar(jnp.diag(jnp.array([2.0, -3.0]))).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    Reference: Nakatsukasa, Bai, Gygi, SIAM J. Matrix Anal. Appl. 31 (2010), for QDWH.
    """
    x = jnp.asarray(x)
    check_matrix(x, "polar")
    if method not in get_args(PolarMethod):
        raise ValueError(f"method must be one of {get_args(PolarMethod)}, got {method!r}")
    if x.size == 0:
        return x
    y, _ = to_unit_peak(x)
    zero = jnp.all(y == 0, axis=(-2, -1), keepdims=True)
    # The decompositions return an orthogonal matrix for zero: a dead leaf would start to move.
    return jnp.where(zero, 0.0, _polar(y, method)).astype(x.dtype)


def _svd(x: jax.Array) -> Any:
    return jnp.linalg.svd(x, full_matrices=False)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _polar(x: jax.Array, method: str) -> jax.Array:
    if method == "svd":
        u, _, vt = one_by_one(_svd, x)
        return u @ vt
    tall = x.mT if x.shape[-2] < x.shape[-1] else x
    flat = tall.reshape(-1, *tall.shape[-2:])
    factor = jax.vmap(lambda a: lax.linalg.qdwh(a)[0])(flat).reshape(tall.shape)
    return factor.mT if x.shape[-2] < x.shape[-1] else factor


@_polar.defjvp
def _polar_jvp(
    method: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Differentiating through the SVD divides by s_i^2 - s_j^2; the factor only needs s_i + s_j.
    (x,), (dx,) = primals, tangents
    u, s, vt = one_by_one(_svd, x)
    cut = jnp.finfo(x.dtype).eps * max(x.shape[-2:]) * s[..., :1]
    live = s > cut
    core = u.mT @ dx @ vt.mT
    sums = s[..., :, None] + s[..., None, :]
    paired = live[..., :, None] & live[..., None, :]
    inner = jnp.where(paired, (core - core.mT) / jnp.where(paired, sums, 1.0), 0.0)
    tangent = u @ inner @ vt
    inverse = jnp.where(live, 1.0 / jnp.where(live, s, 1.0), 0.0)
    if x.shape[-2] < x.shape[-1]:
        rest = dx - (dx @ vt.mT) @ vt
        tangent = tangent + (u * inverse[..., None, :]) @ (u.mT @ rest)
    elif x.shape[-2] > x.shape[-1]:
        rest = dx - u @ (u.mT @ dx)
        tangent = tangent + (rest @ vt.mT) * inverse[..., None, :] @ vt
    return _polar(x, method), tangent
