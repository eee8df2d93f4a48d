"""Which state belongs to which parameter: the basis of plans, shardings and byte counts."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optkit.codecs.base import is_stored_name
from optkit.tree.paths import (
    KeyPath,
    PyTree,
    full_path_string,
    leaves_with_paths,
    path_string,
)
from optkit.tree.sharding import projected_spec, statistic_spec, stored_spec

# The field of a state that holds statistics of projected parameters.
PROJECTED = "projected"
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


def state_sharding(state: PyTree, params: PyTree) -> PyTree:
    """Returns the sharding of every leaf of an optimizer state, for ``jit``'s ``out_shardings``.

    A state leaf that belongs to a parameter and has its shape is sharded like it. A smaller one
    (numbers of rows, of whole matrices) is sharded like the parameter's batch axes, if it has them;
    what a codec stored for rows, like the rows, as far as devices divide it; what a low-rank method
    projected, like the axes that stayed. Everything else is replicated on the parameters' mesh.

    Args:
      state: an optimizer state or its ``jax.eval_shape``.
      params: placed parameters, or ``ShapeDtypeStruct``s with shardings.

    Returns:
      A tree like ``state`` of shardings, usable in ``out_shardings`` of a jitted ``tx.init`` and
      as the placement of a restored checkpoint.

    Raises:
      ValueError: no parameter carries a sharding.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> params = {"w": jnp.ones((4, 2))}
      >>> state = jax.eval_shape(optax.adam(1e-3).init, params)
      >>> optkit.state_sharding(state, params)[0].mu["w"] == params["w"].sharding
      True
    """
    placed = [p.sharding for p in jax.tree.leaves(params) if getattr(p, "sharding", None)]
    if not placed:
        raise ValueError(
            "no parameter has a sharding; place the parameters first, or give "
            "jax.ShapeDtypeStruct(shape, dtype, sharding=...)"
        )
    meshes = [s for s in placed if isinstance(s, NamedSharding)]
    rest = NamedSharding(meshes[0].mesh, PartitionSpec()) if meshes else placed[0]

    def sharding(match: StateLeaf) -> Any:
        shape = tuple(np.shape(match.leaf))
        if match.param is None:
            return rest
        if match.param.shape == shape:
            return match.param.sharding
        if not isinstance(match.param.sharding, NamedSharding):
            return rest
        placement = match.param.sharding
        if match.is_stored and not match.is_basis:
            spec = stored_spec(shape, match.param.shape, placement.spec, placement.mesh)
        else:
            rule = projected_spec if match.is_projected else statistic_spec
            spec = rule(shape, match.param.shape, placement.spec)
        return NamedSharding(placement.mesh, spec)

    leaves = [sharding(match) for match in match_state(state, params)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)
