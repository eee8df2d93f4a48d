"""Kernels in programs over a mesh: the compiler cannot partition them, so each device calls one."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optkit.tree.costs import axes_of
from optkit.tree.sharding import SLOW_AXES, spec_of


def over_batch(function: Callable[..., Any], *arrays: jax.Array, rank: int = 2) -> Any:
    """Calls a function of batches where the batch lies on a mesh: each device on its own part.

    The batch axes are split over the axes of the mesh, in the order in which the matrix plan of
    ``optkit.tree`` splits them, so that nothing moves when it is followed: over those of slow links
    (``SLOW_AXES``) work is repeated, unless Explicit axes say that the batch is cut over them. One
    batch axis that the devices divide is split; else all of them together, filled up with zeros. A
    single item is worked on by every device. On one device, and inside a ``shard_map`` over all
    axes, the function is simply called.

    Args:
      function: of arrays ``(*batch, ...)``; works on each item of the batch by itself, and returns
        arrays with the same leading axes.
      *arrays: with the same batch axes.
      rank: axes of an item of the first array; all before them are batch.

    Returns:
      What the function returns.

    Example:
      >>> over_batch(lambda x: 2 * x, jnp.ones((3, 2, 2))).shape
      (3, 2, 2)
    """
    first = arrays[0]
    mesh = getattr(getattr(jax.typeof(first), "sharding", None), "mesh", None)
    if mesh is None or mesh.empty or mesh.size == 1:
        return function(*arrays)
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    names = tuple(name for name, kind in kinds.items() if kind != AxisType.Manual)
    if not names:
        return function(*arrays)
    batch = first.shape[: first.ndim - rank]
    cut = axes_of(spec_of(first))
    spread = tuple(name for name in names if name not in SLOW_AXES or name in cut) or names
    devices = math.prod(mesh.shape[name] for name in spread)
    fitting = [axis for axis, size in enumerate(batch) if size and size % devices == 0]
    count = math.prod(batch)
    if fitting or count == 1:
        parts: list[Any] = [None] * len(batch)
        if fitting:
            parts[fitting[-1]] = (*spread[1:], spread[0])
        return _mapped(function, arrays, mesh, names, PartitionSpec(*parts))
    missing = -count % devices

    def flat(x: jax.Array) -> jax.Array:
        x = _whole(x, mesh).reshape(count, *x.shape[len(batch) :])
        return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))

    spec = PartitionSpec((*spread[1:], spread[0]))
    done = _mapped(function, tuple(map(flat, arrays)), mesh, names, spec)
    return jax.tree.map(lambda x: _whole(x, mesh)[:count].reshape(*batch, *x.shape[1:]), done)


def _whole(x: jax.Array, mesh: Any) -> jax.Array:
    """An array of Explicit axes on every device: they are cut where they divide only."""
    is_explicit = any(kind == AxisType.Explicit for kind in mesh.axis_types)
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec())) if is_explicit else x


def _mapped(
    function: Callable[..., Any],
    arrays: tuple[jax.Array, ...],
    mesh: Any,
    names: tuple[str, ...],
    spec: PartitionSpec,
) -> Any:
    """The function on each device's part of a batch."""
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        arrays = tuple(jax.sharding.reshard(x, NamedSharding(mesh, spec)) for x in arrays)
    # The kernel's results vary as its arguments do, which the check cannot see.
    call = jax.shard_map(
        function, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=set(names), check_vma=False
    )
    return call(*arrays)
