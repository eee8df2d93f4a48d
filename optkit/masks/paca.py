"""PaCA: some input columns of each matrix, chosen at random."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit._calls import cached_factory
from optkit.masks.lift import as_matrices
from optkit.masks.lines import Lines, top, view_of
from optkit.masks.policy import (
    Active,
    Keep,
    Look,
    Policy,
    Rest,
    at_masked,
    check_keep,
    count_of,
    masked_leaves,
    scope,
)
from optkit.transforms.noise import Key, check_seed, fresh_key, normal_like
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    PyTree,
    RuleLike,
    Selector,
    dims_by_path,
    leaves_with_paths,
)

__all__ = ["paca"]


@cached_factory
def paca(
    rank: Keep,
    *,
    where: Selector = MATRIX_ROLES,
    rest: Rest = "freeze",
    key: Key = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Chooses some input columns of each matrix at random, once.

    The reference trains ``W[:, columns] / s`` with ``s = alpha / rank``, so that a step of Adam
    moves the weight by ``s`` times the learning rate: multiply the learning rate by it (and divide
    a decoupled decay, which there is not scaled).

    Args:
      rank: columns of each matrix that train: a number, or a share in (0, 1].
      where: matrices that are masked.
      rest: what becomes of other leaves, "train" or "freeze".
      key: seed or PRNG key; None for 0.
      dims: see ``optkit.orthogonalize``; says which axes of a leaf are the inputs.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``; it keeps a key. With ``state="drop"`` the inner
      transformation is given ``(rank, fan_out)`` of a kernel ``(fan_in, fan_out)``.

    Raises:
      ValueError: a number out of range, or larger than the fan_in of a matrix.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.update_mask(optax.trace(0.9), optkit.masks.paca(2), state="drop")
      >>> tx.init({"kernel": jnp.ones((5, 3))}).inner.trace["kernel"].shape
      (2, 3)

    Reference:
      PaCA: Partial Connection Adaptation, arXiv 2503.01905. That activations of other columns need
      not be kept for the backward pass is the model's part and not done here.
    """
    check_keep("rank", rank)
    check_seed(key)
    given = scope(where, rest, roles)

    def lines_of(params: PyTree) -> dict[str, Lines]:
        area = as_matrices(given, params, dims)
        named = dims_by_path(params, dims)
        pairs = zip(leaves_with_paths(params), area.masked(params), strict=True)
        return {
            path: Lines(view_of(path, leaf, dims, named, roles), "in")
            for (path, leaf), on in pairs
            if on
        }

    def active(params: PyTree) -> PyTree:
        lines = lines_of(params)

        def choose(path: str, leaf: Any) -> Active:
            del leaf
            own = lines[path]
            count = count_of("rank", rank, own.count, path, "input columns")
            return Active(own.shape, own.batch * count)

        return as_matrices(given, params, dims).active(params, choose)

    def mask(state: jax.Array, look: Look) -> tuple[PyTree, jax.Array]:
        slots = active(look.params)
        _, chosen = masked_leaves(slots, look.params, slots)
        lines = list(lines_of(look.params).values())
        tree = at_masked(look.params, slots, [jnp.zeros(slot.shape) for slot in chosen])
        drawn = jax.tree.leaves(normal_like(tree, state, look.step, None))
        masks = [
            own.mask(top(own.flat(z)[..., 0], slot.count // own.batch))
            for own, z, slot in zip(lines, drawn, chosen, strict=True)
        ]
        return at_masked(look.params, slots, masks), state

    return Policy("paca", active, mask, lambda params: fresh_key(key))
