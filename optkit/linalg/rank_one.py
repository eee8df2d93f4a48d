"""Inverses of averages of outer products, kept up to date by one vector at a time."""

from typing import Literal

import jax
import jax.numpy as jnp

from optkit.linalg.norms import accumulation_dtype, check_matrix
from optkit.tree.sharding import whole_along

RankOneMode = Literal["code", "exact", "paper"]


def rank_one_inverse(
    inverse: jax.Array,
    vector: jax.Array,
    decay: float | jax.Array = 0.95,
    *,
    mode: RankOneMode = "exact",
) -> jax.Array:
    """Returns the inverse of an average after one more outer product, in O(n^2).

    With P the inverse, v the vector and b the decay:

    * ``"exact"``: ``(P - (1-b) P v v^T P / (b + (1-b) v^T P v)) / b``, the inverse of
      ``b*inv(P) + (1-b)*v v^T`` by Sherman and Morrison. Where no vector points P grows as
      ``b**-t``.
    * ``"code"``: ``B - B v v^T B / (1 + v^T B v)`` with ``B = b*P + (1-b)*I``: what MKOR's code
      does. It is the inverse of ``inv(B) + v v^T``; from the identity eigenvalues stay in (0, 1].
    * ``"paper"``: ``b*P + (1-b)/(b**2*(1 + b*(1-b) v^T P v)) * P v v^T P``, as MKOR's paper prints
      it. It grows along v, where an inverse has to shrink: for the record only.

    Args:
      inverse: P, symmetric, ``(..., n, n)``.
      vector: v, ``(..., n)``.
      decay: b, in (0, 1].
      mode: which of them.

    Returns:
      The new P, symmetric, in float32 or better.

    Raises:
      ValueError: an unknown mode, no matrices, or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.linalg.rank_one_inverse(jnp.eye(2), jnp.array([3.0, 0.0]), 0.5).tolist()
      [[0.199..., 0.0], [0.0, 2.0]]

    Reference:
      Sherman and Morrison, 1950; Mozaffari et al., MKOR, arXiv 2306.01685, and its code.
    """
    check_matrix(inverse, "rank_one_inverse")
    if mode not in ("code", "exact", "paper"):
        raise ValueError(f"mode={mode!r} is not one of 'code', 'exact', 'paper'")
    size = inverse.shape[-1]
    if inverse.shape[-2] != size or vector.shape != inverse.shape[:-1]:
        raise ValueError(
            f"rank_one_inverse needs a square matrix and a vector of its size, got shapes "
            f"{inverse.shape} and {vector.shape}"
        )
    p = inverse.astype(accumulation_dtype(inverse.dtype))
    v = vector.astype(p.dtype)
    if mode == "code":
        p = decay * p + (1.0 - decay) * jnp.broadcast_to(jnp.eye(size, dtype=p.dtype), p.shape)
    # Once from the left: the outer product of one vector is symmetric to the last bit.
    w = jnp.matmul(p, v[..., None], precision="highest")
    along = jnp.sum(v[..., None] * w, axis=(-2, -1), keepdims=True)
    outer = w * whole_along(w, w.ndim - 2).mT
    if mode == "code":
        return p - outer / (1.0 + along)
    if mode == "exact":
        return (p - outer * ((1.0 - decay) / (decay + (1.0 - decay) * along))) / decay
    weight = (1.0 - decay) / (decay**2 * (1.0 + decay * (1.0 - decay) * along))
    return decay * p + weight * outer
