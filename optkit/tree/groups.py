"""One compiled loop a shape: leaves of one shape are stacked and worked on together."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from optkit.tree.sharding import (
    mesh_of,
    padded,
    place_stack,
    platform_of,
    shard_stack,
    spec_of,
    unshard_stack,
)

# Stacks are cut at this many bytes. Measured with `python -m benchmarks.group_bytes`: on CPU a
# batched product is no faster than single ones once a matrix fills the cores, so that only small
# leaves are worth the copies of stacking; accelerators want whole stacks as long as they fit.
GROUP_BYTES = {"cpu": 2**19, "default": 2**29}
# On CPU long stacks are worked through in blocks of 8 (`python -m benchmarks.compile_time`), 128
# leaves at a time: what the loop copies grows with the square of that number.
BLOCK = 8
MOST_LEAVES = 128

Rows: TypeAlias = tuple[tuple[jax.Array, ...], ...]


def map_groups(
    function: Callable[[jax.Array], jax.Array],
    matrices: Sequence[jax.Array],
    *,
    group_bytes: int | None = None,
) -> list[jax.Array]:
    """Applies a function of ``(..., m, n)`` to many arrays, those of one shape together.

    Arrays that are batches themselves (stacked layers, experts) get a new leading axis, so that a
    sharded batch axis stays where it is. On a mesh of several devices the matrices of a stack are
    moved to whole matrices on single devices and back: one exchange each way per shape.

    Args:
      function: must treat leading axes as batch and keep shape and dtype.
      matrices: arrays of rank 2 or more.
      group_bytes: bytes that one stack may hold; None for the measured default of the platform.

    Returns:
      The results in order.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> out = optkit.tree.map_groups(lambda x: 2 * x, [jnp.ones((2, 3)), jnp.ones((2, 3))])
      >>> [o.shape for o in out]
      [(2, 3), (2, 3)]
    """
    out: list[jax.Array] = list(matrices)
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, x in enumerate(matrices):
        if x.size:
            groups.setdefault((x.shape, x.dtype, spec_of(x)), []).append(index)
    for indices in groups.values():
        for chunk in _chunks(indices, matrices[indices[0]], group_bytes):
            results = _apply(function, [matrices[i] for i in chunk])
            for index, result in zip(chunk, results, strict=True):
                out[index] = result
    return out


def _chunks(indices: list[int], example: jax.Array, budget: int | None) -> list[list[int]]:
    mesh = mesh_of(example)
    # Emulated CPU devices follow the sharded plan of the accelerators they stand for.
    platform = platform_of(example) if mesh is None else "default"
    if budget is None:
        budget = GROUP_BYTES.get(platform, GROUP_BYTES["default"])
    size = max(1, budget // (example.size * example.dtype.itemsize))
    if platform == "cpu":
        size = min(size, MOST_LEAVES)
    if mesh is not None:
        # A stack that does not fill the mesh would leave devices idle.
        size = padded(size, mesh)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _apply(function: Callable[[jax.Array], jax.Array], leaves: list[jax.Array]) -> list[jax.Array]:
    if len(leaves) == 1 and mesh_of(leaves[0]) is None:
        return [function(leaves[0])]
    mesh, spec = mesh_of(leaves[0]), spec_of(leaves[0])
    if mesh is None and platform_of(leaves[0]) == "cpu":
        return _in_blocks(function, leaves)
    stack = jnp.stack(leaves)
    if mesh is None or _whole(leaves[0], spec):
        return _unstack(function(stack))
    batch, matrix = stack.shape[:-2], stack.shape[-2:]
    fitting = [axis for axis, size in enumerate(batch) if axis and size % mesh.size == 0]
    if fitting:
        # Layers or experts that fill the mesh: if they are sharded already, nothing moves.
        stack = unshard_stack(
            function(shard_stack(stack, mesh, fitting[-1])), mesh, fitting[-1], spec
        )
        return _unstack(stack)
    if spec is not None and any(part is not None for part in tuple(spec)[:-2]):
        whole = jax.sharding.PartitionSpec(*tuple(spec)[:-2], None, None)
        return _unstack(place_stack(function(place_stack(stack, mesh, whole)), mesh, spec))
    flat = stack.reshape(-1, *matrix)
    count = flat.shape[0]
    missing = padded(count, mesh) - count
    if missing:
        # Matrices of zeros are safe in every method and give every device the same share.
        # (A pad keeps the partition on Explicit axes, where a concatenation needs equal ones.)
        flat = jnp.pad(flat, ((0, missing), (0, 0), (0, 0)))
    single = None if spec is None else jax.sharding.PartitionSpec(*tuple(spec)[-2:])
    flat = unshard_stack(function(shard_stack(flat, mesh, 0)), mesh, 0, single)
    return _unstack(flat[:count].reshape(*batch, *matrix))


def _in_blocks(
    function: Callable[[jax.Array], jax.Array], leaves: list[jax.Array]
) -> list[jax.Array]:
    """Works through a stack in a loop over blocks of BLOCK leaves.

    XLA's CPU compiler makes a kernel for every distinct offset at which a leaf is sliced out of a
    stack, at some 20 ms each. The loop slices at BLOCK offsets only, and keeps the results of each
    offset in a row of arrays that moves up one place a round.
    """
    if len(leaves) <= BLOCK:
        return _unstack(function(jnp.stack(leaves)))
    zero = jnp.zeros_like(leaves[0])
    rounds = -(-len(leaves) // BLOCK)
    padding = [zero] * (rounds * BLOCK - len(leaves))
    stack = jnp.stack([*leaves, *padding]).reshape(rounds, BLOCK, *leaves[0].shape)

    def body(rows: Rows, block: jax.Array) -> tuple[Rows, None]:
        done = _unstack(function(block))
        return tuple((*row[1:], new) for row, new in zip(rows, done, strict=True)), None

    rows, _ = jax.lax.scan(body, tuple((zero,) * rounds for _ in range(BLOCK)), stack)
    return [rows[i % BLOCK][i // BLOCK] for i in range(len(leaves))]


def _unstack(stack: jax.Array) -> list[jax.Array]:
    return [stack[i] for i in range(stack.shape[0])]


def _whole(leaf: jax.Array, spec: jax.sharding.PartitionSpec | None) -> bool:
    """Tells whether an Explicit leaf is a batch of whole matrices already: nothing must move."""
    whole = spec is not None and all(part is None for part in tuple(spec)[-2:])
    return whole and leaf.ndim > 2
