"""Where a stack of matrices lives: whole matrices on single devices, moved there and back once."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

Mesh = Any
# Names of axes that go over slices or hosts, on whose links nothing is sent unless asked for.
SLOW_AXES = ("slice", "slices", "dcn", "replica", "host")
SpecRule = Callable[[tuple[int, ...], tuple[int, ...], PartitionSpec], PartitionSpec]


def mesh_of(x: jax.Array) -> Mesh | None:
    """Returns the mesh that an array (or the tracer of one) lives on, or None for one device.

    Axes that a surrounding ``shard_map`` has made manual do not count: inside it an array is the
    local block.
    """
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    if mesh is None or mesh.empty or AxisType.Manual in mesh.axis_types or mesh.size == 1:
        return None
    return mesh


def platform_of(x: jax.Array) -> str:
    """Returns the platform an array is meant for: that of its mesh, or the default backend."""
    mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
    return getattr(mesh, "platform", None) or jax.default_backend()


def spec_of(x: jax.Array) -> PartitionSpec | None:
    """Returns the partition of an array on an Explicit mesh; None where the compiler decides it."""
    mesh = mesh_of(x)
    if mesh is None or AxisType.Explicit not in mesh.axis_types:
        return None
    return jax.typeof(x).sharding.spec


def place(x: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Returns an array placed by a partition, or the compiler told to, as the axes are."""
    if all(kind == AxisType.Explicit for kind in mesh.axis_types):
        return jax.sharding.reshard(x, NamedSharding(mesh, spec))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def shard_stack(stack: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    """Returns ``(..., m, n)`` as whole matrices, batch axis ``axis`` split over the mesh.

    The axis must be a multiple of the mesh size. Where the mesh has several axes they move there
    one at a time: asked for in one step, XLA's partitioner gathers everything.
    """
    names = tuple(mesh.axis_names)
    stack = _halfway(stack, mesh, axis)
    return place(stack, mesh, _spec(stack.ndim, {axis: (*names[1:], names[0])}))


def unshard_stack(stack: jax.Array, mesh: Mesh, axis: int, spec: PartitionSpec | None) -> jax.Array:
    """Returns the stack as it was before ``shard_stack``; ``spec`` is that of a single leaf's view.

    Without a spec (Auto axes) the compiler takes the leaf's sharding from what it is added to; that
    the stack axis is whole must be said, or slicing a leaf out of it is an exchange of its own.
    """
    stack = _halfway(stack, mesh, axis)
    if spec is None:
        free = PartitionSpec.UNCONSTRAINED
        return place(stack, mesh, PartitionSpec(None, *(free,) * (stack.ndim - 1)))
    return place_stack(stack, mesh, spec)


def place_stack(stack: jax.Array, mesh: Mesh, spec: PartitionSpec) -> jax.Array:
    """Places a stack of leaves so that each has the given partition."""
    return place(stack, mesh, PartitionSpec(None, *spec))


def whole_stack(stack: jax.Array, batch: int, mesh: Mesh) -> jax.Array:
    """Says that a stack ``(leaves, *batch, ...)`` is whole but for its ``batch`` batch axes."""
    free = (PartitionSpec.UNCONSTRAINED,) * batch
    return place(stack, mesh, PartitionSpec(None, *free, *(None,) * (stack.ndim - batch - 1)))


def statistic_spec(
    shape: tuple[int, ...], leaf: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    """Returns how a statistic of a leaf is partitioned: like its batch axes, else not at all.

    Numbers of rows, columns or whole matrices are few, so that each device keeps all of them; but
    what belongs to a layer or an expert lies where the layer or expert does.
    """
    parts: list[Any] = []
    for own, size, part in zip(shape, leaf[:-2], (*spec, *(None,) * len(leaf)), strict=False):
        if own != size:
            break
        parts.append(part)
    return PartitionSpec(*parts)


def projected_spec(
    shape: tuple[int, ...], leaf: tuple[int, ...], spec: PartitionSpec
) -> PartitionSpec:
    """Returns how a statistic of projected matrices is partitioned: like the axes that stayed."""
    if len(shape) != len(leaf):
        return statistic_spec(shape, leaf, spec)
    parts = (*spec, *(None,) * (len(leaf) - len(spec)))
    return PartitionSpec(
        *(part if own == size else None for own, size, part in zip(shape, leaf, parts, strict=True))
    )


def stored_spec(
    shape: tuple[int, ...], leaf: tuple[int, ...], spec: PartitionSpec, mesh: Mesh
) -> PartitionSpec:
    """Returns how a part of what a codec stored for a leaf is partitioned: like the leaf's axes.

    Scales and packed codes of rows have a shorter last axis, which is cut where devices divide it.
    What was flattened is whole on each device.
    """
    if len(shape) != len(leaf) or shape[:-1] != leaf[:-1]:
        return PartitionSpec()
    parts = [*spec, *(None,) * (len(leaf) - len(spec))]
    last = parts[-1] if isinstance(parts[-1], tuple) else (parts[-1],)
    devices = math.prod(mesh.shape[name] for name in last if name is not None)
    if shape[-1] % devices:
        parts[-1] = None
    return PartitionSpec(*parts)


def history_spec(spec: PartitionSpec) -> PartitionSpec:
    """Returns how a history of a leaf, on a leading axis, is partitioned: each entry like it."""
    return PartitionSpec(None, *spec)


def zeros_beside(
    leaf: Any, shape: tuple[int, ...], dtype: Any, rule: SpecRule = statistic_spec
) -> jax.Array:
    """Returns zeros for a statistic of a leaf, placed as a rule says."""
    explicit = spec_of(leaf) if isinstance(leaf, jax.core.Tracer) else None
    if explicit is not None:
        mesh = mesh_of(leaf)
        return place(jnp.zeros(shape, dtype), mesh, rule(shape, leaf.shape, explicit))
    placed = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    if isinstance(placed, NamedSharding):
        spec = rule(shape, np.shape(leaf), placed.spec)
        return jnp.zeros(shape, dtype, device=NamedSharding(placed.mesh, spec))
    return jnp.zeros(shape, dtype)


def factor_spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """Returns how square factors ``(*batch, n, n)`` of a leaf are partitioned, whatever it is.

    They are as large as the leaf, so that no device keeps all: each has its share of the last batch
    axis if the devices divide it, else of the rows. Over axes of slow links they are repeated.
    """
    every = tuple(mesh.axis_names)
    names = tuple(name for name in every if name not in SLOW_AXES) or every
    devices = math.prod(mesh.shape[name] for name in names)
    for axis in (len(shape) - 3, len(shape) - 2):
        if axis >= 0 and shape[axis] and shape[axis] % devices == 0:
            return PartitionSpec(*(names if i == axis else None for i in range(len(shape))))
    return PartitionSpec(*(None,) * len(shape))


def factor_beside(leaf: Any, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Returns zeros for factors of a leaf, placed as ``factor_spec`` says."""
    if isinstance(leaf, jax.core.Tracer):
        return place_factor(jnp.zeros(shape, dtype), leaf)
    placed = getattr(leaf, "sharding", None)
    if isinstance(placed, NamedSharding) and placed.mesh.size > 1:
        spec = factor_spec(shape, placed.mesh)
        return jnp.zeros(shape, dtype, device=NamedSharding(placed.mesh, spec))
    return jnp.zeros(shape, dtype)


def place_factor(x: jax.Array, leaf: jax.Array) -> jax.Array:
    """Places a factor of a leaf as ``factor_spec`` says."""
    mesh = mesh_of(leaf)
    return x if mesh is None else place(x, mesh, factor_spec(x.shape, mesh))


def place_projected(x: jax.Array, leaf: Any) -> jax.Array:
    """Places what a leaf was projected to as ``projected_spec`` says, on Explicit axes."""
    spec = spec_of(leaf)
    return x if spec is None else place(x, mesh_of(leaf), projected_spec(x.shape, leaf.shape, spec))


def place_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Places an array like another one of its shape, on Explicit axes."""
    spec = spec_of(like)
    return x if spec is None or spec_of(x) == spec else place(x, mesh_of(like), spec)


def whole_along(x: jax.Array, axis: int) -> jax.Array:
    """Returns an array that is whole along an axis, on Explicit axes: sums over it need no rule."""
    spec = spec_of(x)
    if spec is None:
        return x
    parts = [*spec, *(None,) * (x.ndim - len(spec))]
    if parts[axis] is None:
        return x
    parts[axis] = None
    return place(x, mesh_of(x), PartitionSpec(*parts))


def place_statistic(statistic: jax.Array, matrices: jax.Array) -> jax.Array:
    """Places a new statistic ``(*batch, ...)`` of matrices ``(*batch, m, n)`` as it lay before.

    Without this the next step would get it in another place than this one did, and compile anew.
    """
    mesh = mesh_of(matrices)
    if mesh is None:
        return statistic
    spec, rank = spec_of(matrices), matrices.ndim - 2
    batch = (PartitionSpec.UNCONSTRAINED,) * rank if spec is None else tuple(spec)[:rank]
    return place(statistic, mesh, PartitionSpec(*batch, *(None,) * (statistic.ndim - rank)))


def _halfway(stack: jax.Array, mesh: Mesh, axis: int) -> jax.Array:
    names = tuple(mesh.axis_names)
    has_rows = stack.ndim - 2 > axis
    if len(names) == 1 or not has_rows or stack.shape[-2] % mesh.shape[names[0]]:
        return stack
    return place(stack, mesh, _spec(stack.ndim, {axis: names[1:], stack.ndim - 2: names[0]}))


def _spec(rank: int, parts: dict[int, Any]) -> PartitionSpec:
    return PartitionSpec(*(parts.get(axis) for axis in range(rank)))


def padded(count: int, mesh: Mesh) -> int:
    """Returns the smallest multiple of the mesh size that holds ``count`` matrices."""
    return math.ceil(count / mesh.size) * mesh.size
