"""Conducive gradients: what a shard of data knows of the others while it samples alone."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from optkit.tree import PyTree, upcast


def conducive_gradient(
    params: PyTree,
    means: PyTree,
    precisions: PyTree,
    shard: int | jax.Array,
    probabilities: Sequence[float] | jax.Array,
) -> PyTree:
    """Corrects a shard's gradient of the log posterior by surrogates of all shards' likelihoods.

    With ``grad log q_j(p) = -precision_j*(p - mean_j)`` of diagonal Gaussians:

    ``c_s = sum_j grad log q_j(p) - grad log q_s(p)/f_s``.

    It is to be added to ``v_s = grad log prior + N_s/(f_s*m) * sum_minibatch grad log lik``, the
    estimate of the gradient of the log posterior at shard ``s``, which is drawn with probability
    ``f_s``. The mean of ``c_s`` over the shards is 0, and where the surrogates are the likelihoods
    of the shards, ``v_s + c_s`` is the same at all of them. For a loss that is minus the log
    posterior over N, subtract ``c_s/N`` from its gradient and take ``temperature=1/N``.

    Args:
      params: where, any shapes.
      means: a tree like the parameters with a leading axis of the shards.
      precisions: likewise, at least 0.
      shard: which shard samples now, an int32 scalar; may be traced.
      probabilities: ``f``, one a shard, that sum to 1; one of 0 is for shards that are never drawn.

    Returns:
      A tree like the parameters, in their dtypes.

    Raises:
      ValueError: a leaf whose surrogates do not have the shape (shards, *shape).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> means, ones = {"w": jnp.array([[1.0], [3.0]])}, {"w": jnp.ones((2, 1))}
      >>> at = {"w": jnp.zeros(1)}
      >>> both = [optkit.conducive_gradient(at, means, ones, s, (0.5, 0.5)) for s in (0, 1)]
      >>> [c["w"].tolist() for c in both]
      [[2.0], [-2.0]]

    Reference:
      El Mekkaoui et al., Federated Stochastic Gradient Langevin Dynamics, arXiv 2004.11231. Written
      from its equations; no code was read.
    """
    f = jnp.asarray(probabilities, jnp.float32)

    def leaf(p: jax.Array, mean: jax.Array, precision: jax.Array) -> jax.Array:
        if not mean.shape == precision.shape == (*f.shape, *p.shape):
            raise ValueError(
                f"surrogates of shapes {mean.shape} and {precision.shape} for a leaf {p.shape} and "
                f"{f.shape[0]} probabilities: give {(*f.shape, *p.shape)}"
            )
        pulls = upcast(precision) * (upcast(mean) - upcast(p)[None])
        return (jnp.sum(pulls, axis=0) - pulls[shard] / f[shard]).astype(p.dtype)

    return jax.tree.map(leaf, params, means, precisions)
