"""The operation on groups that lie on several devices: each has its own, and all of the weights."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from optkit.kernels.counters import Counters
from optkit.kernels.meshes import AUTO, free_axes, names_of, parts_of, placed


def why_not_split(x: jax.Array) -> str | None:
    """Returns why no device has whole groups of rows, or it is not known; None if it has."""
    mesh, kinds = free_axes(x)
    if AxisType.Auto in kinds.values():
        return AUTO.format(mesh=dict(mesh.shape))
    if kinds and any(part is not None for part in parts_of(x, 3)[1:]):
        return (
            f"rows are partitioned as {jax.typeof(x).sharding.spec}: groups alone may be on "
            "several devices"
        )
    return None


def on_each_device(
    call: Callable[..., jax.Array], x: jax.Array, w: jax.Array, noise: Any, scale: jax.Array
) -> jax.Array:
    """Calls ``call(x, w, noise, scale)``, on each device's groups where they are split."""
    mesh, kinds = free_axes(x)
    if not kinds:
        return call(x, w, noise, scale)
    part = parts_of(x, 3)[0]
    names, whole, split = names_of(part), PartitionSpec(), PartitionSpec(part)

    def own(x: jax.Array, w: jax.Array, noise: Any, scale: jax.Array) -> jax.Array:
        if isinstance(noise, Counters) and names:  # its draws are numbered through
            first = noise.first + jax.lax.axis_index(names) * x.shape[0]
            noise = replace(noise, first=first)
        return call(x, w, noise, scale)

    given = (x, w, noise, scale)
    noises = jax.tree.map(lambda _: whole if isinstance(noise, Counters) else split, noise)
    specs = (split, whole, noises, split)
    mapped = jax.shard_map(
        own,
        mesh=mesh,
        in_specs=specs,
        out_specs=split,
        axis_names=set(kinds),
        check_vma=False,  # a group's rows follow from that group alone, which the check cannot see
    )
    return mapped(*jax.tree.map(lambda x, spec: placed(x, mesh, spec), given, specs))
