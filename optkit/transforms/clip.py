"""Clipping by a norm that cannot overflow."""

import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, map_updates, stateless
from optkit.transforms.guards import global_norm
from optkit.transforms.hyperparams import check_number
from optkit.tree import PyTree


@register(
    kind="part",
    family="safety",
    state_bytes={"*": 0},
    tags=("clip", "norm"),
    chain="u min(1, max_norm / norm(u))",
    example={"max_norm": 1.0},
)
def clip_by_global_norm(max_norm: float) -> Transformation:
    """Scales all updates down together if their norm is above a bound.

    ``n = sqrt(sum of all squares)``; ``u <- u * min(1, max_norm/n)``. The norm is taken in float32
    and in units of the largest entry: float16 trees and entries of 1e+25 do not overflow it, as
    they do ``optax.clip_by_global_norm``. A non-finite entry makes all updates non-finite, so that
    a guard can see it.

    Args:
      max_norm: largest norm that passes unchanged; positive.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes); keeps dtypes.

    Raises:
      ValueError: ``max_norm`` is not positive.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.clip_by_global_norm(1.0)
      >>> u, _ = tx.update({"w": jnp.full(4, 6e4, jnp.float16)}, tx.init(None))
      >>> u["w"].tolist()
      [0.5, 0.5, 0.5, 0.5]

    Reference:
      Pascanu et al., On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    """
    check_number("max_norm", max_norm, low=1e-30, infinite=True)

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        norm = global_norm(updates)
        factor = jnp.where(jnp.isfinite(norm), jnp.minimum(1.0, max_norm / norm), jnp.nan)
        # 0/0 only where there is nothing to scale.
        factor = jnp.where(norm == 0, 1.0, factor)
        return map_updates(lambda u: u * factor, updates)

    return stateless(update)
