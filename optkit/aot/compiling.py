"""Compiles a function for an accelerator that need not be there."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from optkit.aot.targets import Target, find_target
from optkit.tree import leaves_with_paths
from optkit.tree.placement import IndivisibleShape, check_spec

MeshLike = Mesh | AbstractMesh | Mapping[str, int] | None


def compile_for(
    target: str | Target,
    function: Callable[..., Any],
    *shapes: Any,
    donate: tuple[int, ...] = (),
    mesh: MeshLike = None,
    out_shardings: Any = None,
) -> jax.stages.Compiled:
    """Compiles a function for a topology; nothing is allocated, and nothing can be run.

    Args:
      target: a topology, such as ``"v5e:4x4"``, see ``find_target``.
      function: what to compile. One that is jitted already keeps its own options; ``donate`` and
        ``out_shardings`` are not taken then.
      *shapes: trees of ``jax.ShapeDtypeStruct`` or arrays, one an argument. Those with a
        ``NamedSharding`` over any mesh, also an abstract one or one of CPUs, are placed alike on
        the target's; others are replicated, or on one device if there is no mesh.
      donate: numbers of arguments whose memory results may take.
      mesh: the mesh, as sizes by axis name or a mesh with such axes; by default the one that the
        arguments' shardings name, else a single device. Functions that name a mesh themselves, for
        ``shard_map`` say, need ``find_target(name).mesh(...)``.
      out_shardings: shardings of the results, as of ``jax.jit``; over any mesh, as of ``shapes``.

    Returns:
      The compiled program: ``.as_text()``, ``.memory_analysis()``.

    Raises:
      UnavailableTarget: the compiler is not installed or locked.
      IndivisibleShape: a dimension does not divide by the axes that it is split over.
      ValueError: the topology is unknown, or the mesh does not fit it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.aot import compile_for, find_target
      >>> x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
      >>> try:
      ...     compile_for("v7x:2x2", lambda x: x @ x, x)
      ... except ValueError as error:
      ...     print(str(error).split(";")[0])
      unknown topology 'v7x:2x2' (did you mean 'tpu7x'?)
    """
    traced = trace_for(
        target, function, *shapes, donate=donate, mesh=mesh, out_shardings=out_shardings
    )
    return traced.lower(lowering_platforms=(find_target(target).chip.platform,)).compile()


def trace_for(
    target: str | Target,
    function: Callable[..., Any],
    *shapes: Any,
    donate: tuple[int, ...] = (),
    mesh: MeshLike = None,
    out_shardings: Any = None,
) -> jax.stages.Traced:
    """Traces a function with arguments on a topology, the step before ``lower`` and ``compile``.

    Args:
      target: as of ``compile_for``, like all arguments.
      function: see there.
      *shapes: see there.
      donate: see there.
      mesh: see there.
      out_shardings: see there.

    Returns:
      The traced function: lower it with ``lowering_platforms=(target.chip.platform,)``.

    Raises:
      UnavailableTarget: the compiler is not installed or locked.
      IndivisibleShape: a dimension does not divide by the axes that it is split over.
      ValueError: the topology is unknown, or the mesh does not fit it.
    """
    found = find_target(target)
    check_shapes(shapes)
    real = target_mesh(found, mesh, shapes)
    placed = place_shapes(shapes, found, real)
    if not hasattr(function, "trace"):
        placed_out = None if out_shardings is None else place_shardings(out_shardings, real)
        options = {} if placed_out is None else {"out_shardings": placed_out}
        function = jax.jit(function, donate_argnums=donate, **options)
    elif donate or out_shardings is not None:
        raise ValueError(
            "the function is jitted already: give donate_argnums and out_shardings to its jax.jit, "
            "or pass the function without jit"
        )
    with contextlib.nullcontext() if real is None else jax.set_mesh(real):
        return function.trace(*placed)


def target_mesh(target: Target, mesh: MeshLike, shapes: Any) -> Mesh | None:
    """Returns the mesh over a target's devices that arguments are placed on.

    Args:
      target: whose devices.
      mesh: as of ``compile_for``.
      shapes: the arguments, whose shardings name a mesh if ``mesh`` is None.

    Returns:
      A mesh, or None for a single device.

    Raises:
      ValueError: two meshes are named, or one that does not fit the devices.
    """
    if mesh is None:
        named = {_axes(x): x.sharding.mesh for x in jax.tree.leaves(shapes) if is_sharded(x)}
        if len(named) > 1:
            raise ValueError(f"the arguments are placed on several meshes: {[*named]}")
        mesh = next(iter(named.values()), None)
    if mesh is None:
        return None
    if isinstance(mesh, Mapping):
        return target.mesh(mesh)
    if isinstance(mesh, Mesh) and set(mesh.devices.flat) <= set(target.devices):
        return mesh
    return target.mesh(dict(mesh.shape), axis_types=mesh.axis_types)


def _axes(x: Any) -> tuple[tuple[str, int], ...]:
    return tuple(x.sharding.mesh.shape.items())


def is_sharded(x: Any) -> bool:
    """Returns whether an array or shape is placed on a mesh.

    Args:
      x: a leaf.

    Returns:
      The answer.
    """
    placed = getattr(x, "sharding", None)
    return isinstance(placed, NamedSharding) and not placed.mesh.empty


def place_shapes(shapes: Any, target: Target, mesh: Mesh | None) -> Any:
    """Returns shapes with shardings on a target's devices.

    Args:
      shapes: a tree; a tuple of arguments.
      target: the target.
      mesh: from ``target_mesh``.

    Returns:
      The tree with ``jax.ShapeDtypeStruct`` leaves; Python numbers stay.

    Raises:
      IndivisibleShape: a dimension does not divide; the leaf, its size and the axes are named.
    """
    whole = (
        SingleDeviceSharding(target.devices[0])
        if mesh is None
        else NamedSharding(mesh, PartitionSpec())
    )

    def place(x: Any) -> Any:
        if not hasattr(x, "shape"):
            return x
        sharding = NamedSharding(mesh, x.sharding.spec) if mesh and is_sharded(x) else whole
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


def check_shapes(shapes: Sequence[Any]) -> None:
    """Raises if an argument cannot be split over its mesh as its sharding says.

    Args:
      shapes: the arguments, trees of arrays or shapes.

    Raises:
      IndivisibleShape: naming the leaf, the dimension, its size and the axes.
    """
    for number, tree in enumerate(shapes):
        for path, leaf in leaves_with_paths(tree):
            if is_sharded(leaf):
                where = f"argument {number}" + (f", leaf {path!r}" if path else "")
                check_spec(where, leaf.shape, leaf.sharding.spec, dict(leaf.sharding.mesh.shape))


def place_shardings(shardings: Any, mesh: Mesh | None) -> Any:
    """Returns shardings of results over the mesh of a target.

    Args:
      shardings: a tree of shardings over any mesh, of partitions, or None where the compiler
        decides.
      mesh: from ``target_mesh``.

    Returns:
      The tree on the mesh, or None without one.
    """
    if mesh is None:
        return None

    def move(x: Any) -> Any:
        if isinstance(x, PartitionSpec):
            return NamedSharding(mesh, x)
        return NamedSharding(mesh, x.spec) if isinstance(x, NamedSharding) else x

    return jax.tree.map(move, shardings, is_leaf=lambda x: isinstance(x, PartitionSpec))


def argument_bytes(tree: Any) -> int:
    """Returns the bytes that placed shapes take on each device, at most.

    Args:
      tree: shapes with shardings; those without one count in full.

    Returns:
      Bytes, before the device pads them to its tiles.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        if hasattr(leaf, "shape"):
            placed = getattr(leaf, "sharding", None)
            shape = leaf.shape if placed is None else placed.shard_shape(leaf.shape)
            total += math.prod(shape) * _itemsize(leaf.dtype)
    return total


def _itemsize(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 8
    return np.dtype(dtype).itemsize


__all__ = [
    "IndivisibleShape",
    "MeshLike",
    "argument_bytes",
    "check_shapes",
    "check_spec",
    "compile_for",
    "is_sharded",
    "place_shapes",
    "place_shardings",
    "target_mesh",
    "trace_for",
]
