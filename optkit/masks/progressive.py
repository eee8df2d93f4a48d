"""Progressive gradient flow over a tree: the weights that the forward pass sees."""

from collections.abc import Sequence
from typing import Any

import jax

from optkit.linalg.decayed import decayed_mask
from optkit.linalg.sparsity import check_groups
from optkit.masks.lift import as_matrices, matrices_of
from optkit.masks.policy import scope
from optkit.tree import MATRIX_ROLES, Dims, PyTree, RuleLike, Selector, leaves_with_paths

__all__ = ["decayed_weights"]


def decayed_weights(
    params: PyTree,
    d: float | jax.Array,
    pattern: tuple[int, int] = (2, 4),
    *,
    masked_gradient: bool = False,
    where: Selector = MATRIX_ROLES,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> PyTree:
    """Returns parameters whose hidden matrices fade to N:M sparsity, gradients straight through.

    ``optkit.decayed_mask`` along the inputs of every matrix; other leaves are as they are. Call it
    inside of the loss: ``loss(optkit.masks.decayed_weights(params, d(step)), batch)``.

    Args:
      params: a tree of arrays.
      d: what is left of masked weights, such as ``optkit.schedules.mask_decay()(step)``.
      pattern: N and M: weights kept of a group, and its size.
      masked_gradient: restrict the gradient to what is kept.
      where: matrices that are masked.
      dims: see ``optkit.orthogonalize``; says which side of a matrix is its input.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A tree like ``params``.

    Raises:
      ValueError: no pattern, or a leaf named by ``where`` that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"kernel": jnp.array([[4.0], [1.0], [-2.0], [3.0]]), "bias": jnp.ones(1)}
      >>> optkit.masks.decayed_weights(params, 0.0)["kernel"][:, 0].tolist()
      [4.0, 0.0, -0.0, 3.0]

    Reference:
      Progressive Gradient Flow, arXiv 2402.04744.
    """
    check_groups(*pattern)
    area = as_matrices(scope(where, "train", roles), params, dims)
    part, layout = matrices_of(area, params, dims)
    parts = layout.split(part, "out")
    faded = [decayed_mask(x, d, *pattern, axis=-1, masked_gradient=masked_gradient) for x in parts]
    found: dict[str, Any] = dict(leaves_with_paths(layout.merge(faded, "out")))
    out = [found.get(path, leaf) for path, leaf in leaves_with_paths(params)]
    return jax.tree.unflatten(jax.tree.structure(params), out)
