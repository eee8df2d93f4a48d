"""Replicas with parameters of their own: made, run side by side, and led together."""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optkit.distributed.workers import AxisName, axes_of, check_axis_name, mean
from optkit.transforms.base import map_leaves, prng_key
from optkit.transforms.hyperparams import check_number, check_static_int
from optkit.tree import PyTree, map_with_path, upcast
from optkit.tree.sharding import spec_of


def replicas(params: PyTree, count: int, *, noise: float = 0.0, key: int | jax.Array = 0) -> PyTree:
    """Makes copies of parameters along a new leading axis, each near them if wanted.

    ``p_r = p + N(0, (noise*||p||)**2/size)``, for each leaf of floats and replica: the warm noisy
    start of HDET, whose ``noise`` is 0.01. Other leaves are copied; replicas that draw, as dropout
    does, want a PRNG key each.

    Args:
      params: any tree of arrays.
      count: how many.
      noise: standard deviation, relative to the root mean square of a leaf.
      key: seed or PRNG key of the noise.

    Returns:
      A tree like ``params`` of arrays (count, ...) in their dtypes.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.replicas({"w": jnp.ones(2)}, 3)["w"].tolist()
      [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]

    Reference:
      Cheng et al., arXiv 2604.24708, section 3.5; its d is the size of each leaf here.
    """
    check_static_int("count", count)
    check_number("noise", noise, low=0.0)
    first = prng_key(key)

    def leaf(path: str, p: jax.Array) -> jax.Array:
        copies = jnp.broadcast_to(p, (count, *p.shape))
        exact = not jnp.issubdtype(p.dtype, jnp.floating)  # counters, tables, keys
        if exact or (isinstance(noise, float | int) and noise == 0):
            return jnp.array(copies)
        own = jax.random.fold_in(first, zlib.crc32(path.encode()))
        draw = jax.random.normal(own, copies.shape)
        scale = noise * jnp.sqrt(jnp.sum(jnp.square(upcast(p))) / max(p.size, 1))
        return (upcast(copies) + scale * draw).astype(p.dtype)

    return map_with_path(leaf, jax.tree.map(jnp.asarray, params))


def on_replicas(
    function: Callable[..., Any],
    axis_name: str = "replica",
    mesh: jax.sharding.Mesh | None = None,
) -> Callable[..., Any]:
    """Makes a function of one replica one of all of them, stacked along leading axes.

    Without a mesh the replicas are on one device, ``jax.vmap(function, axis_name=...)``. With one,
    each lies along a mesh axis, by ``jax.shard_map``; further axes of the mesh stay with the
    compiler, so that ``NamedSharding`` splits a replica's batch or its parameters over them. Either
    way arguments and results are the same arrays.

    Args:
      function: of trees of arrays, which may call collectives by ``axis_name``.
      axis_name: the replicas' axis.
      mesh: see above; the axis has as many devices as there are replicas.

    Returns:
      A function of trees of arrays with a leading axis; so are its results.

    Raises:
      ValueError: an axis that the mesh does not have; other than one replica a device.
      TypeError: a mesh in the place of the name.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> lead = optkit.on_replicas(lambda x: x - jax.lax.pmean(x, "replica"))
      >>> lead(jnp.array([1.0, 3.0])).tolist()
      [-1.0, 1.0]
    """
    check_axis_name(axis_name)
    if mesh is None:
        return jax.vmap(function, axis_name=axis_name)
    if axis_name not in mesh.axis_names:
        raise ValueError(
            f"axis_name={axis_name!r}: the mesh has no such axis, only {list(mesh.axis_names)}"
        )
    count = mesh.shape[axis_name]

    def own(args: tuple[Any, ...]) -> Any:
        out = function(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), out)

    where = PartitionSpec(axis_name)
    mapped = jax.shard_map(
        own, mesh=mesh, in_specs=where, out_specs=where, axis_names=frozenset({axis_name})
    )

    def call(*args: Any) -> Any:
        sizes = {jnp.shape(x)[:1] for x in jax.tree.leaves(args)} - {(count,)}
        if sizes:
            raise ValueError(
                f"the axis {axis_name!r} has {count} devices, a replica each, but an argument has "
                f"a leading axis of {sorted(sizes)[0]}: stack {count} replicas along it"
            )
        if mesh.axis_types[mesh.axis_names.index(axis_name)] == AxisType.Explicit:
            args = jax.tree.map(lambda x: _along(x, mesh, axis_name), args)
        return mapped(args)

    return call


def _along(x: Any, mesh: jax.sharding.Mesh, axis_name: str) -> jax.Array:
    """Replicas of an array along an Explicit axis, where they are not there yet."""
    spec = spec_of(x)
    if spec is not None and tuple(spec)[:1] == (axis_name,):
        return x
    rest = tuple(spec)[1:] if spec is not None else ()
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(axis_name, *rest)))


def meeting(params: PyTree, updates: PyTree, axis_name: AxisName) -> PyTree:
    """Returns updates that lead all replicas to the mean of where their own updates lead.

    A sum of floats cannot have every value: what it leads to is a multiple of the finest digits of
    its terms. So the mean is rounded to twice the last digit of the largest replica's. Then
    replicas are equal bit for bit, but for entries whose sign changes on the way: an odd last digit
    of one replica may be out of another's reach, whatever the target. Two exchanges.
    """
    names = axes_of(axis_name)
    new = jax.tree.leaves(map_leaves(lambda u, p: upcast(p) + upcast(u), updates, params))
    sizes = [jnp.abs(upcast(p)) for p in jax.tree.leaves(params)]
    centres, tops = mean(new, axis_name), lax.pmax(sizes, names) if sizes else sizes

    def leaf(u: jax.Array, p: jax.Array, centre: jax.Array, top: jax.Array) -> jax.Array:
        held = upcast(p)
        digits = jnp.finfo(p.dtype).nmant
        exponent = jnp.frexp(jnp.maximum(top, jnp.abs(centre)))[1]
        grid = jnp.ldexp(jnp.ones_like(centre), exponent - digits)
        fine = (grid >= jnp.finfo(centre.dtype).tiny) & jnp.isfinite(centre)
        grid = jnp.where(fine, grid, 1.0)
        target = jnp.where(fine, jnp.round(centre / grid) * grid, centre)
        return (target - held).astype(u.dtype)

    structure: Any = jax.tree.structure(updates)
    like = structure.unflatten
    return map_leaves(leaf, updates, params, like(centres), like(tops))
