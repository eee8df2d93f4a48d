"""The operation on an array that lies on several devices: each works on its own blocks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, PartitionSpec

from optkit.codecs.base import Codec, Shape
from optkit.codecs.blocks import in_rows
from optkit.codecs.table import TableCodec
from optkit.kernels.meshes import AUTO, devices_of, free_axes, parts_of, placed


def why_not_split(codecs: Sequence[TableCodec], shape: Shape, like: jax.Array) -> str | None:
    """Returns why blocks would cross from device to device, with the numbers; None if none does."""
    mesh, kinds = free_axes(like)
    if not kinds:
        return None
    if AxisType.Auto in kinds.values():
        return AUTO.format(mesh=dict(mesh.shape))
    *lead, last = parts_of(like, len(shape)) or [None]
    block = codecs[0].block
    if not in_rows(shape, block, codecs[0].layout):
        if any(part is not None for part in (*lead, last)):
            return (
                f"{tuple(shape)} is partitioned as {jax.typeof(like).sharding.spec}, and its "
                f"blocks of {block} are cut from its flattened entries, across devices"
            )
        return None
    width = shape[-1] // devices_of(mesh, last)
    if last is not None and width % block:
        return (
            f"a device has {width} entries of each row of {shape[-1]}, and blocks of {block} "
            "would cross from one to the next"
        )
    return None


def on_each_device(
    call: Callable[..., Any],
    write: Sequence[Codec],
    stored: Sequence[Mapping[str, jax.Array]],
    arrays: Sequence[jax.Array],
    scalars: Sequence[jax.Array],
    shape: Shape,
) -> Any:
    """Calls ``call(stored, arrays, scalars, shape)``: on each device's part, where it is split."""
    like = arrays[0] if arrays else stored[0]["codes"]
    mesh, kinds = free_axes(like)
    if not kinds:
        return call(stored, arrays, scalars, shape)
    parts = parts_of(like, len(shape))
    local = tuple(size // devices_of(mesh, part) for size, part in zip(shape, parts, strict=True))

    def spec(x: Any) -> PartitionSpec:
        # What was flattened is whole, as the array is then.
        return PartitionSpec(*parts) if len(x.shape) == len(shape) else PartitionSpec()

    given = (list(stored), list(arrays), list(scalars))
    specs = (*jax.tree.map(spec, given[:2]), jax.tree.map(lambda _: PartitionSpec(), given[2]))
    plain = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), given)
    outputs = jax.eval_shape(lambda *xs: call(*xs, shape), *plain)
    mapped = jax.shard_map(
        lambda *xs: call(*xs, local),
        mesh=mesh,
        in_specs=specs,
        out_specs=jax.tree.map(spec, outputs),
        axis_names=set(kinds),
        check_vma=False,  # each entry follows from its own block, which the check cannot see
    )
    return mapped(*jax.tree.map(lambda x, own: placed(x, mesh, own), given, specs))
