"""A function of whole arrays, run inside ``shard_map`` on the blocks that a device holds."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit.spmd.blocks import Block, Devices, Parts
from optkit.spmd.control import evaluate


def traced(function: Callable[..., Any], shapes: Sequence[Any]) -> tuple[Any, Any]:
    """The program of a function of whole arrays, and the tree of its results."""
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        program, out = jax.make_jaxpr(function, return_shape=True)(*shapes)
    return program, jax.tree.structure(out)


def run_on_blocks(
    function: Callable[..., Any],
    devices: Devices,
    values: Sequence[jax.Array],
    parts: Sequence[Parts],
    out_parts: Callable[[Any], Sequence[Parts]],
) -> Any:
    """Computes a function of whole arrays from this device's blocks of them.

    The function is traced with the shapes of the whole arrays, and each of its operations done on
    blocks: what is alike entry by entry stays local, sums are completed over devices, and what
    has no rule gathers its operands. So the result is that of the function outside of
    ``shard_map``, up to the order of sums.

    Args:
      function: of as many arrays as there are values; returns a tree of arrays.
      devices: the devices of the manual region.
      values: the blocks.
      parts: how each is split.
      out_parts: from the shapes of the results, how each of them is to be split.

    Returns:
      The blocks of the results.
    """
    shapes = [
        tuple(size * devices.count(part) for size, part in zip(jnp.shape(x), own, strict=True))
        for x, own in zip(values, parts, strict=True)
    ]
    whole = [
        jax.ShapeDtypeStruct(shape, x.dtype, weak_type=getattr(x, "weak_type", False))
        for shape, x in zip(shapes, values, strict=True)
    ]
    program, structure = traced(function, whole)
    given = [Block(*each) for each in zip(values, parts, shapes, strict=True)]
    out = evaluate(devices, program, given)
    shapes_of = jax.tree.unflatten(structure, [var.aval for var in program.jaxpr.outvars])
    results = [
        devices.laid(block, own).value for block, own in zip(out, out_parts(shapes_of), strict=True)
    ]
    return jax.tree.unflatten(structure, results)
