"""Which state belongs to which parameter: the basis of plans, shardings and byte counts."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optkit.codecs.base import is_stored_name
from optkit.tree.paths import (
    KeyPath,
    PyTree,
    full_path_string,
    leaves_with_paths,
    path_string,
)

# The field of a state that holds statistics of projected parameters.
PROJECTED = "projected"
# Of what each worker has for itself, a first axis of workers before the parameter's.
OF_WORKER = "of_worker"
# Factors of matrices and their roots, which lie spread over the devices whatever their leaf does.
KRONECKER = "kronecker"
# And that of bases, which a codec may have stored, each matrix's in a row.
BASIS = "basis"


@dataclass(frozen=True)
class StateLeaf:
    """One array of an optimizer state.

    Attributes:
      key_path: its key path in the state.
      leaf: the array or shape.
      param_path: path of the parameter it belongs to; None for counters and the like.
      param: that parameter.
    """

    key_path: KeyPath
    leaf: Any
    param_path: str | None
    param: Any

    @property
    def owner(self) -> str:
        """The part of the key path before the parameter's own path."""
        place = _place(self.key_path)
        for full in (path_string(place), full_path_string(place)):
            if self.param_path and full.endswith(self.param_path):
                return full[: -len(self.param_path)].rstrip("/")
        return path_string(place)

    @property
    def is_stored(self) -> bool:
        """Whether it is a part of what a codec stored."""
        return _place(self.key_path) != self.key_path

    @property
    def is_projected(self) -> bool:
        """Whether it is a statistic of what a low-rank method projected its parameter to."""
        return any(getattr(entry, "name", None) == PROJECTED for entry in self.key_path)

    @property
    def is_of_worker(self) -> bool:
        """Whether each worker has its own."""
        return any(getattr(entry, "name", None) == OF_WORKER for entry in self.key_path)

    @property
    def is_factor(self) -> bool:
        """Whether it is a factor of its parameter's matrices, as large as they are."""
        return any(getattr(entry, "name", None) == KRONECKER for entry in self.key_path)

    @property
    def is_basis(self) -> bool:
        """Whether it is (a part of) a basis that a low-rank method keeps for its parameter."""
        return any(getattr(entry, "name", None) == BASIS for entry in self.key_path)


def _place(path: KeyPath) -> KeyPath:
    """Returns the key path without the name of a codec's part, behind the path of a parameter."""
    return path[:-1] if path and is_stored_name(getattr(path[-1], "key", None)) else path


def match_state(state: PyTree, params: PyTree) -> list[StateLeaf]:
    """Assigns every leaf of a state to the parameter whose key path its own ends with.

    Args:
      state: an optimizer state or its shapes.
      params: the parameters or their shapes.

    Returns:
      One ``StateLeaf`` a leaf, in flattening order; the longest matching path wins.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> params = {"w": jnp.ones(3)}
      >>> [m.param_path for m in optkit.tree.match_state(optax.adam(1.0).init(params), params)]
      [None, 'w', 'w']
    """
    flat = jax.tree_util.tree_leaves_with_path(params)
    named = leaves_with_paths(params)
    by_path = {tuple(key_path): pair for (key_path, _), pair in zip(flat, named, strict=True)}
    out = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        found: tuple[str | None, Any] = (None, None)
        place = _place(path)
        for start in range(len(place) + 1):
            owner = by_path.get(tuple(place[start:]))
            # A bare array has the empty path, which every path ends with: compare its shape too,
            # if it is no part of what a codec stored.
            fits = start < len(place) or place != path
            if owner and (fits or np.shape(owner[1]) == np.shape(leaf)):
                found = owner
                break
        out.append(StateLeaf(path, leaf, *found))
    return out


def leaf_bytes(leaf: Any) -> int:
    """Returns the bytes of an array or shape; PRNG keys count their words.

    Args:
      leaf: array or ``ShapeDtypeStruct``.

    Returns:
      Bytes.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.leaf_bytes(jnp.zeros((2, 3), jnp.bfloat16))
      12
    """
    return math.prod(np.shape(leaf)) * leaf.dtype.itemsize


def tree_bytes(tree: PyTree) -> int:
    """Returns the bytes of all leaves.

    Args:
      tree: arrays or shapes.

    Returns:
      Bytes.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.tree_bytes({"a": jnp.zeros(3), "b": None})
      12
    """
    return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))
