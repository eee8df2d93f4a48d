"""The weighted sum of a leaf's noise by a kernel, which makes the noise itself."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.noise import LeafNoise
from optkit.kernels.implementation import Implementation, check_implementation
from optkit.kernels.population_update import Counters, population_update, why_not


def check_by_kernel(implementation: Implementation, law: str, draws: str) -> None:
    """Raises where noise is asked of a kernel that can't make it.

    Raises:
      ValueError: an unknown implementation, or noise that no kernel makes.
    """
    check_implementation(implementation)
    if implementation == "xla":
        return
    for name, value, wanted in (("noise", law, "low_rank"), ("draws", draws, "counters")):
        if value != wanted:
            raise ValueError(
                f"implementation={implementation!r} makes low-rank noise by counters, and "
                f"{name}={value!r}; give {name}={wanted!r}, or implementation='xla'"
            )


def by_kernel(leaf: LeafNoise) -> bool:
    """Tells whether a kernel sums a leaf's noise: two factors, and no axis that both have."""
    return bool(leaf.moved and leaf.rank) and len(leaf.left + leaf.right) == len(leaf.shape)


def check_leaves(leaves: Iterable[LeafNoise]) -> None:
    """Raises where a kernel does not make the noise of a leaf that it would sum.

    Raises:
      ValueError: names the leaf and the reason.
    """
    for leaf in filter(by_kernel, leaves):
        shape = _sides(leaf)
        if leaf.dtype != jnp.float32:
            reason: str | None = f"its noise is {leaf.dtype}, and float32 is made"
        else:
            reason = why_not(Counters(None, 0, leaf.rank), shape)
        if reason is not None:
            raise ValueError(
                f"leaf {leaf.path!r}: no kernel serves it: {reason}; give implementation='xla'"
            )


def summed_by_kernel(
    leaf: LeafNoise,
    key: jax.Array,
    weights: jax.Array,
    signs: bool,
    implementation: Implementation,
    first: Any = 0,
) -> jax.Array:
    """Returns the weighted sum over pairs of a leaf's noise, in the shape of the leaf.

    Args:
      leaf: one that ``by_kernel`` is true of.
      key: of the leaf and the step.
      weights: ``(pairs,)``.
      signs: sum the signs of the factors.
      implementation: of the kernel.
      first: number of the first pair.
    """
    noise = Counters(jax.random.key_data(key), first, leaf.rank)
    total = population_update(
        weights / math.sqrt(leaf.rank),
        noise,
        _sides(leaf),
        signs=signs,
        implementation=implementation,
    )
    # Axes of the right factor, then those of the left one; and back.
    order = [axis for side in (leaf.right, leaf.left) for axis in sorted(side)]
    apart = total.reshape([leaf.shape[axis] for axis in order])
    return apart.transpose([order.index(axis) for axis in range(len(order))])


def _sides(leaf: LeafNoise) -> tuple[int, int]:
    """How many numbers the right factor and the left one have, for each rank."""
    a, b = leaf.factor_shapes
    return math.prod(b[:-1]), math.prod(a[:-1])
