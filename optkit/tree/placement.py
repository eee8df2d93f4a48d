"""Where each array of an optimizer state lies, from where the parameters lie."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from optkit.tree.accounting import StateLeaf, match_state
from optkit.tree.paths import PyTree, leaves_with_paths
from optkit.tree.sharding import (
    Mesh,
    factor_spec,
    history_spec,
    projected_spec,
    statistic_spec,
    stored_spec,
)


class IndivisibleShape(ValueError):
    """A dimension of an argument does not divide by the mesh axes that it is split over."""


def state_sharding(
    tx: Any, params: PyTree, shardings: PyTree = None, *, mesh: Mesh | None = None
) -> PyTree:
    """Returns where each leaf of an optimizer state belongs, for the ``out_shardings`` of ``jit``.

    The state is traced, not made. A leaf that belongs to a parameter (its path ends with the
    parameter's) and has its shape lies like it; a history of such leaves, like them behind its
    leading axis; a smaller one (numbers of rows, of whole matrices), like the parameter's batch
    axes, if it has them; what a codec stored for rows, like the rows, as far as devices divide it;
    what a low-rank method projected, like the axes that stayed. Anything else (counters, keys,
    bases of low-rank methods) is replicated.

    Where axes are Auto and there are several, give these for the state that a jitted step returns,
    too: the compiler may otherwise move what it holds, and then the next step compiles anew.

    Args:
      tx: any Optax transformation, or a state of one or its shapes.
      params: the parameters, or ``jax.ShapeDtypeStruct``s.
      shardings: a tree like ``params`` of ``NamedSharding`` or ``PartitionSpec``, or one for whole
        subtrees; None takes the shardings that the parameters carry.
      mesh: the mesh that partitions speak of; None takes that of ``jax.set_mesh``, if one is set.

    Returns:
      A tree like ``tx.init(params)`` of shardings: for the ``out_shardings`` of a jitted
      ``tx.init``, and as the placement of a restored checkpoint. Partitions without a ``mesh``
      give partitions: for the ``in_specs`` and ``out_specs`` of ``jax.shard_map``.

    Raises:
      ValueError: no parameter carries a sharding; a dimension that the devices do not divide; a
        stored state whose place depends on the number of devices, without a mesh.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> from jax.sharding import PartitionSpec as P
      >>> params = {"w": jax.ShapeDtypeStruct((4, 2), jnp.float32)}
      >>> specs = optkit.state_sharding(optax.adam(1e-3), params, {"w": P("x", None)})
      >>> specs[0].count, specs[0].mu["w"]
      (P(), P('x', None))
    """
    state = _abstract_state(tx, params)
    places = _places(params, shardings, mesh)
    named = [place for place in places.values() if isinstance(place, NamedSharding)]
    if not named and any(isinstance(place, PartitionSpec) for place in places.values()):
        rest: Any = PartitionSpec()
    else:
        rest = NamedSharding(named[0].mesh, PartitionSpec()) if named else places[min(places)]
    known = mesh or jax.sharding.get_abstract_mesh()

    def sharding(match: StateLeaf) -> Any:
        if match.param_path is None:
            return rest
        place = places[match.param_path]
        if isinstance(place, NamedSharding):
            return NamedSharding(place.mesh, spec_of_state(match, place.spec, place.mesh))
        return (
            spec_of_state(match, place, known)
            if isinstance(place, PartitionSpec)
            else (place if np.shape(match.leaf) == np.shape(match.param) else rest)
        )

    leaves = [sharding(match) for match in match_state(state, params)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def spec_of_state(match: StateLeaf, spec: PartitionSpec, mesh: Mesh) -> PartitionSpec:
    """Returns the partition of a state leaf that belongs to a parameter of a given partition."""
    shape, leaf = tuple(np.shape(match.leaf)), tuple(np.shape(match.param))
    if match.is_factor and not mesh.empty:
        return factor_spec(shape, mesh)
    if shape == leaf:
        return spec
    if match.is_stored and not match.is_basis:
        if mesh.empty and any(spec) and len(shape) == len(leaf):
            raise ValueError(
                f"the state of {match.param_path!r} is stored in fewer bytes, and where these lie "
                "depends on the number of devices: give mesh=, or call inside jax.set_mesh"
            )
        return stored_spec(shape, leaf, spec, mesh)
    if match.is_projected:
        return projected_spec(shape, leaf, spec)
    if match.is_of_worker:
        return PartitionSpec()  # ``init_workers`` lays it over their axis
    return history_spec(spec) if shape[1:] == leaf else statistic_spec(shape, leaf, spec)


def _abstract_state(tx: Any, params: PyTree) -> PyTree:
    """Shapes of a state; of a transformation that of its init, as on a single device."""
    if not hasattr(tx, "init"):
        return tx
    bare = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), params)
    return jax.eval_shape(tx.init, bare)


def _places(params: PyTree, shardings: PyTree, mesh: Mesh | None) -> dict[str, Any]:
    """The sharding of each parameter by path, divisible as far as can be told."""
    named = leaves_with_paths(params)
    if shardings is None:
        given = [getattr(leaf, "sharding", None) for _, leaf in named]
        if not any(given):
            raise ValueError(
                "no parameter has a sharding; place the parameters first, give shardings=, or "
                "give jax.ShapeDtypeStruct(shape, dtype, sharding=...)"
            )
    else:
        given = jax.tree.leaves(jax.tree.broadcast(shardings, params))
    out = {}
    for (path, leaf), place in zip(named, given, strict=True):
        if isinstance(place, PartitionSpec) and mesh is not None:
            place = NamedSharding(mesh, place)
        if isinstance(place, NamedSharding):
            check_spec(f"leaf {path!r}", np.shape(leaf), place.spec, dict(place.mesh.shape))
        out[path] = place
    return out


def check_spec(
    where: str, shape: Sequence[int], spec: PartitionSpec, axes: Mapping[str, int]
) -> None:
    """Raises if a shape cannot be split as a partition says.

    Args:
      where: of what, for the message.
      shape: its shape.
      spec: its partition.
      axes: sizes of the mesh axes by name.

    Raises:
      IndivisibleShape: naming the dimension, its size and the axes.
      ValueError: the partition has more entries than the shape, or names an unknown axis.

    Example:
      >>> from jax.sharding import PartitionSpec
      >>> try:
      ...     check_spec("leaf 'w'", (10, 4), PartitionSpec("x"), {"x": 8})
      ... except IndivisibleShape as error:
      ...     print(str(error).split(":")[1].split(";")[0])
       dimension 0 has 10 entries and the mesh axis 'x' has 8
    """
    if len(spec) > len(shape):
        raise ValueError(f"{where} of shape {tuple(shape)} has fewer dimensions than {spec}")
    for number, (size, entry) in enumerate(zip(shape, spec, strict=False)):
        if entry is None or entry is PartitionSpec.UNCONSTRAINED:
            continue
        names = (entry,) if isinstance(entry, str) else tuple(entry)
        if unknown := [name for name in names if name not in axes]:
            raise ValueError(f"{where} is split over {unknown[0]!r}; mesh axes are {dict(axes)}")
        parts = math.prod(axes[name] for name in names)
        if size % parts:
            plural = "axis" if len(names) == 1 else "axes"
            raise IndivisibleShape(
                f"{where} of shape {tuple(shape)} cannot be split: dimension {number} has {size} "
                f"entries and the mesh {plural} {', '.join(map(repr, names))} "
                f"{'has' if len(names) == 1 else 'have'} {parts}; pad it to "
                f"{-(-size // parts) * parts}, or leave that dimension whole"
            )


__all__ = ["IndivisibleShape", "check_spec", "state_sharding"]
