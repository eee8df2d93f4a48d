"""The arithmetic of ``scale_by_norm_ratio``: norms, their ratio and its bounds, stack by stack."""

import functools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.norms import norm_over
from optkit.transforms.hyperparams import Scalar
from optkit.tree import MatrixView, map_groups
from optkit.tree.sharding import place_statistic

Per = Literal["matrix", "column"]
# The axis on which the results of a part are stacked: the last, but for the columns.
_APART: dict[Per, int] = {"matrix": -1, "column": -2}

# Entries of a stack that is small enough to be copied.
_SMALL = 2**17


class Numbers(NamedTuple):
    """The numbers of one update."""

    b2: Scalar
    eps: Scalar
    weights: Scalar  # corrects both averages for their start at zero
    clamp: Scalar
    update_rms: Scalar | None
    limit: Scalar
    weight_decay: Scalar


class Factors(NamedTuple):
    """Of one part of the tree; the first two ready to be multiplied with its matrices."""

    direction: jax.Array
    decay: jax.Array
    norm: jax.Array  # (*batch,) or (*batch, fan_in): the new statistic


def root_mean_square(old: jax.Array, new: jax.Array, decay: Scalar) -> jax.Array:
    """``sqrt(decay*old**2 + (1-decay)*new**2)`` without squares that overflow or vanish."""
    largest = jnp.maximum(old, new)
    unit = jnp.where(largest > 0, largest, 1.0)
    mean = decay * jnp.square(old / unit) + (1.0 - decay) * jnp.square(new / unit)
    return unit * jnp.sqrt(mean)


def towards_mean(ratio: jax.Array, clamp: Scalar) -> jax.Array:
    """Clips ``(..., columns)`` to ``[clamp*mean, mean/clamp]``; a clamp of 0 clips nothing."""
    if not isinstance(clamp, jax.Array) and clamp == 0.0:
        return ratio
    mean = jnp.mean(ratio, axis=-1, keepdims=True)
    highest = jnp.where(clamp > 0, mean / jnp.where(clamp > 0, clamp, 1.0), jnp.inf)
    return jnp.clip(ratio, clamp * mean, highest)


def summed_axes(view: MatrixView, per: Per) -> tuple[int, ...]:
    """The axes of a view's ``(..., short, long)`` that a norm sums over; a column's: the output."""
    if per == "matrix":
        return (-2, -1)
    if view.fan_in == view.fan_out:
        return (-1,) if view.in_axes < view.out_axes else (-2,)
    return (-1,) if view.fan_in < view.fan_out else (-2,)


def _norms(u: jax.Array, g: jax.Array, axes: tuple[int, ...]) -> Sequence[jax.Array]:
    if u.size <= _SMALL:
        # Both at once, half the kernels: 128 leaves of 32 x 32 compile in 1.6 times muon's time
        # instead of twice. A copy of large matrices would cost a tenth of the step.
        both = norm_over(jnp.stack([u, g]), axes)
        return both[0], both[1]
    return norm_over(u, axes), norm_over(g, axes)


def _work(
    per: Per,
    axes: tuple[int, ...],
    numbers: Numbers,
    u: jax.Array,
    g: jax.Array,
    s: jax.Array,
    *length: jax.Array,
) -> jax.Array:
    """Statistic and both factors of a stack, on an axis of their own."""
    of_momentum, of_gradient = (x.reshape(s.shape) for x in _norms(u, g, axes))
    new = root_mean_square(s, of_gradient, numbers.b2)
    below = new + numbers.eps
    r = of_momentum / jnp.where(below > 0, below, 1.0) * numbers.weights
    r = towards_mean(r, numbers.clamp) if per == "column" else r
    k: Scalar = 1.0
    if length:
        k = length[0][..., None] if per == "column" else length[0]
    elif numbers.update_rms is not None:
        k = numbers.update_rms * math.sqrt(max(u.shape[-2:]))
    decay = numbers.weight_decay * jnp.minimum(r, numbers.limit)
    values = [new, jnp.minimum(r * k, numbers.limit), jnp.minimum(decay, numbers.limit)]
    # One array of all results: each array costs a leaf its own copies out of the stack.
    return place_statistic(jnp.stack(values, _APART[per]).astype(s.dtype), g)


def factors_of(
    per: Per,
    numbers: Numbers,
    views: Sequence[MatrixView],
    ahead: Sequence[jax.Array],
    grads: Sequence[jax.Array],
    norms: Sequence[jax.Array],
    *lengths: Sequence[jax.Array],
) -> list[Factors]:
    """Returns what each part is multiplied by, and its new statistic.

    Whole stacks at a time, so that a leaf costs the compiler little more than two products.

    Args:
      per: one ratio a matrix or a column.
      numbers: those of this update.
      views: how each part is read.
      ahead: momentum of each part, ``(*batch, short, long)``.
      grads: gradient of each part, likewise.
      norms: statistic of each part.
      *lengths: ``(*batch,)`` of each part, to be taken for ``update_rms*sqrt(max(A, B))``.
    """
    arrays = (ahead, grads, norms, *lengths)
    summed = [summed_axes(view, per) for view in views]
    out: dict[int, Factors] = {}
    for axes in sorted(set(summed)):
        mine = [index for index, own in enumerate(summed) if own == axes]
        chosen = [[column[index] for index in mine] for column in arrays]
        # Only norms leave the devices that hold a leaf.
        done = map_groups(functools.partial(_work, per, axes, numbers), *chosen, move=False)
        for index, packed in zip(mine, done, strict=True):
            packed = place_statistic(packed, grads[index])
            new, direction, decay = (
                jax.lax.index_in_dim(packed, i, _APART[per], keepdims=False) for i in range(3)
            )
            out[index] = Factors(
                jnp.expand_dims(direction, axes), jnp.expand_dims(decay, axes), new
            )
    return [out[index] for index in range(len(views))]
