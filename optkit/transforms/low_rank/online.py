"""Bases that an optimizer of their own moves at every step (Online Subspace Descent)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, auto_axes

from optkit.linalg.bases import subspace_gradient
from optkit.transforms.adam import scale_by_adam
from optkit.transforms.base import Transformation, branch, keep_dtypes
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.refresh import InForce
from optkit.transforms.low_rank.subspace import Held, Subspaces
from optkit.transforms.step import descend
from optkit.tree import PyTree
from optkit.tree.sharding import place_statistic, spec_of

_DECAY = 1e-2  # torch's AdamW


def basis_optimizer_of(asked: Subspace) -> Transformation:
    """The user's optimizer of bases, or AdamW with a step size of 1/refresh_every."""
    if asked.basis_optimizer is not None:
        return asked.basis_optimizer
    return descend(scale_by_adam(), 1.0 / asked.refresh_every, weight_decay=_DECAY)


def _slope(x: jax.Array, basis: jax.Array, precision: Any) -> jax.Array:
    slope: Any = partial(subspace_gradient, precision=precision)
    spec = spec_of(x)
    if spec is not None:  # an Explicit mesh wants to be told what sums over its axes result in
        batch = tuple(spec)[: x.ndim - 2]
        slope = auto_axes(slope, out_sharding=PartitionSpec(*batch, None, None))
    return slope(x, basis)


def moved_bases(
    spaces: Subspaces,
    now: InForce,
    bases: tuple[PyTree, ...],
    state: PyTree,
    grads: Sequence[jax.Array],
    count: jax.Array,
) -> tuple[tuple[PyTree, ...], PyTree]:
    """Moves the bases of this step for the next one, but for those that are new at this one.

    Args:
      spaces: the subspaces.
      now: what is in force.
      bases: the same bases as trees.
      state: that of the optimizer.
      grads: the gradients ``(*batch, fan_in, fan_out)``.
      count: finished updates.

    Returns:
      The bases of the next step, and the optimizer's state.
    """
    optimizer, precision = basis_optimizer_of(spaces.asked), spaces.asked.precision

    def masked(x: jax.Array, unset: jax.Array) -> jax.Array:
        return jnp.where(unset[..., None, None], 0.0, x)

    def move(bases: tuple[PyTree, ...], state: PyTree) -> tuple[tuple[PyTree, ...], PyTree]:
        slopes = []
        for part, x, own, unset in zip(spaces.parts, grads, now.bases, now.unset, strict=True):
            each = []
            for side, p in zip(part.sides, own, strict=True):
                turned = x if side == "right" else x.mT
                slope = _slope(turned, p.astype(x.dtype), precision)
                each.append(place_statistic(masked(slope, unset), x))
            slopes.append(Held(tuple(each), None))
        moved, after = optimizer.update(spaces.pack(slopes)[0], state, bases)
        moves = [own.basis for own in spaces.unpack(moved, ())]
        new = []
        for own, steps, unset in zip(now.bases, moves, now.unset, strict=True):
            pairs = zip(own, steps, strict=True)
            new.append(Held(tuple((p + masked(u, unset)).astype(p.dtype) for p, u in pairs), None))
        return spaces.pack(new)[0], keep_dtypes(after, state)

    # At the first step no basis is older than its gradient.
    return branch(count > 0, move, lambda bases, state: (bases, state), bases, state)
