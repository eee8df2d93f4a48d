"""What clients, workers or replicas run on: all on one device, or along a mesh of several."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit

AXIS = "clients"
EACH, ALL = P(AXIS), P()


def mesh_for(count: int, axis: str = AXIS) -> Mesh | None:
    """A mesh of the most devices that divide a number of clients; None where that is one."""
    devices = max(d for d in range(1, jax.device_count() + 1) if count % d == 0)
    kinds, chosen = (AxisType.Auto,), jax.devices()[:devices]
    return (
        jax.make_mesh((devices,), (axis,), axis_types=kinds, devices=chosen) if chosen[1:] else None
    )


def forms(count: int) -> list[Mesh | None]:
    """No mesh, and then the one for so many clients, if there are devices."""
    mesh = mesh_for(count)
    return [None] if mesh is None else [None, mesh]


def axis_of(mesh: Mesh | None) -> str | None:
    """The ``axis_name`` of what runs along a mesh."""
    return None if mesh is None else AXIS


def along(function: Callable[..., Any], mesh: Mesh | None, ins: Any, outs: Any) -> Any:
    """A function of a device's own clients as one of all; ``ins`` and ``outs`` say what is cut."""
    return (
        function
        if mesh is None
        else jax.shard_map(function, mesh=mesh, in_specs=ins, out_specs=outs)
    )


def started(init: Callable[[int], Any], count: int, mesh: Mesh | None) -> tuple[Any, Any]:
    """A state and its specs, of ``init(clients of one device)``."""
    if mesh is None:
        return init(count), ALL
    own = functools.partial(init, count // mesh.size)
    shapes = jax.eval_shape(jax.vmap(own, axis_name=AXIS, axis_size=mesh.size))
    specs = optkit.worker_specs(shapes, AXIS)
    return jax.jit(jax.shard_map(own, mesh=mesh, in_specs=(), out_specs=specs))(), specs


def laid(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays (clients, ...) on their devices, for programs that the compiler cuts."""
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, EACH))


def replica_forms(count: int, axis: str) -> list[Callable[[Any], Any]]:
    """``optkit.on_replicas`` on one device, and with a device for each if there are as many."""
    mesh = mesh_for(count, axis)
    meshes = [None, mesh] if mesh is not None and mesh.size == count else [None]
    return [functools.partial(optkit.on_replicas, axis_name=axis, mesh=m) for m in meshes]
