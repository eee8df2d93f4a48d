"""Normal numbers for a tree: from a key in the state, or given so that a run can be repeated."""

import collections
import functools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optkit.transforms.base import check_same_leaves
from optkit.transforms.sketching import check_key, fresh_state
from optkit.tree import PyTree, compute_dtype, leaves_with_paths
from optkit.tree.sharding import mesh_of

Key = int | jax.Array | None

# Numbers that are drawn together at most, and those of a leaf so small that each device of a mesh
# may draw all of them.
_TOGETHER, _SMALL = 2**24, 2**14


def check_seed(key: Any) -> None:
    """Raises ValueError unless a value is None, a seed or one PRNG key."""
    if key is not None:
        check_key(key)


def fresh_key(key: Key) -> jax.Array:
    """Returns a threefry key in a buffer of its own; None stands for the seed 0."""
    return fresh_state(0 if key is None else key).key


def normal_like(updates: PyTree, key: jax.Array, count: jax.Array, given: PyTree | None) -> PyTree:
    """Returns standard normal numbers shaped like the updates, in float32 or better.

    They depend on key, step and the leaf's path only: neither on neighbours nor on sharding.

    Args:
      updates: what they are shaped like.
      key: PRNG key of the state.
      count: finished updates.
      given: recorded numbers to be taken instead; None draws.

    Raises:
      ValueError: recorded numbers that do not have the leaves or shapes of the updates.
    """
    if given is not None:
        check_same_leaves(updates, given, "noise", shapes=True)
        return given
    step_key = jax.random.fold_in(key, count)
    names = [zlib.crc32(path.encode()) for path, _ in leaves_with_paths(updates)]
    leaves = jax.tree.leaves(updates)
    out: list[jax.Array] = [*leaves]
    for indices in _groups(leaves):
        words = np.array([names[index] for index in indices], np.uint32)
        draw = functools.partial(_draw, step_key, leaves[indices[0]])
        # A loop, which no compiler copies into what uses its results, as it does with a batch: 128
        # generators take ten seconds to compile. The numbers are those of each leaf alone.
        drawn = jax.lax.map(draw, jnp.asarray(words)) if len(words) > 1 else [draw(words[0])]
        for index, numbers in zip(indices, drawn, strict=True):
            out[index] = numbers
    return jax.tree.unflatten(jax.tree.structure(updates), out)


def _draw(step_key: jax.Array, like: jax.Array, word: jax.Array) -> jax.Array:
    own = jax.random.fold_in(step_key, word)
    return jax.random.normal(own, like.shape, compute_dtype(like))


def _groups(leaves: list[jax.Array]) -> list[list[int]]:
    """Returns which leaves are drawn together: of one shape, not too many, none that is spread."""
    alike = collections.defaultdict(list)
    for index, leaf in enumerate(leaves):
        spread = leaf.size > _SMALL and mesh_of(leaf) is not None
        alike[leaf.shape, compute_dtype(leaf), index if spread else -1].append(index)
    out: list[list[int]] = []
    for (shape, _, _), indices in alike.items():
        count = max(1, _TOGETHER // max(1, math.prod(shape)))
        out += [indices[at : at + count] for at in range(0, len(indices), count)]
    return out
