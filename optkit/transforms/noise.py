"""Normal numbers for a tree: from a key in the state, or given so that a run can be repeated."""

import zlib
from typing import Any

import jax

from optkit.transforms.base import check_same_leaves
from optkit.transforms.sketching import check_key, fresh_state
from optkit.tree import PyTree, compute_dtype, map_with_path

Key = int | jax.Array | None


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

    def leaf(path: str, u: jax.Array) -> jax.Array:
        own = jax.random.fold_in(step_key, zlib.crc32(path.encode()))
        return jax.random.normal(own, u.shape, compute_dtype(u))

    return map_with_path(leaf, updates)
