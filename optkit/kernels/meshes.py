"""Where an array of a sharded program lies, as far as it is known while the program is traced."""

import math
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AUTO = (
    "on the Auto axes of the mesh {mesh} it is not known while tracing how an array lies: give the "
    "mesh Explicit axes, or call it inside of jax.shard_map"
)


def free_axes(x: jax.Array) -> tuple[Any, dict[str, AxisType]]:
    """Returns the mesh of an array, and the kinds of its axes that no ``shard_map`` has taken."""
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    if mesh is None or mesh.empty or mesh.size == 1:
        return None, {}
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    return mesh, {name: kind for name, kind in kinds.items() if kind != AxisType.Manual}


def parts_of(x: jax.Array, ndim: int) -> list[Any]:
    """Returns the partition of each axis on Explicit axes of a mesh."""
    spec = (*jax.typeof(x).sharding.spec, *(None,) * ndim)
    return list(spec[:ndim])


def devices_of(mesh: Any, part: Any) -> int:
    """Returns over how many devices an axis is split."""
    return math.prod(mesh.shape[name] for name in names_of(part))


def names_of(part: Any) -> tuple[str, ...]:
    """Returns the axes of the mesh that split an axis."""
    return part if isinstance(part, tuple) else () if part is None else (part,)


def placed(x: jax.Array, mesh: Any, spec: PartitionSpec) -> jax.Array:
    """Returns an array on Explicit axes as ``shard_map`` asks for it."""
    return jax.sharding.reshard(x, NamedSharding(mesh, spec))
