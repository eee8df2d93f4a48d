"""Vectors of many clients or examples, each cut to a length before they are added."""

import jax
import jax.numpy as jnp

from optkit.transforms.guards import global_norm
from optkit.transforms.hyperparams import Scalar
from optkit.tree import PyTree

# Below any norm that matters: a zero vector has the factor 1.
_TINY = 1e-37


def cut_factors(
    tree: PyTree, clip: Scalar, counted: jax.Array, eps: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Returns by what each vector has to be multiplied, so that none is longer than ``clip``.

    ``min(1, clip/(norm + eps))``, over all leaves together. What is not counted has 0, and so has
    what has no finite norm: as NaN, or not clipped at all, one example would decide the sum.

    Args:
      tree: arrays (C, ...), a vector along each leading entry.
      clip: the length; infinity clips nothing.
      counted: bool (C,).
      eps: added to norms.

    Returns:
      Factors, float32 (C,), and norms, float32 (C,).
    """
    norms = jax.vmap(global_norm)(tree)
    factors = jnp.minimum(1.0, clip / jnp.maximum(norms + eps, _TINY))
    return jnp.where(counted & jnp.isfinite(norms), factors, 0.0), norms
