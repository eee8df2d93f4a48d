"""One compiled loop a shape: leaves of one shape are stacked and worked on together."""

import math
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
    whole_stack,
)

# Stacks are cut at this many bytes. Measured with `python -m benchmarks.group_bytes`: on CPU a
# batched product is no faster than single ones once a matrix fills the cores, so that only small
# leaves are worth the copies of stacking; accelerators want whole stacks as long as they fit.
GROUP_BYTES = {"cpu": 2**19, "default": 2**29}
# On CPU long stacks are worked through in blocks of 8 (`python -m benchmarks.compile_time`), 128
# leaves at a time: what the loop copies grows with the square of that number.
BLOCK = 8
MOST_LEAVES = 128

Arrays: TypeAlias = tuple[jax.Array, ...]
Function: TypeAlias = Callable[..., jax.Array | Arrays]


def map_groups(
    function: Function,
    matrices: Sequence[jax.Array],
    *others: Sequence[jax.Array],
    group_bytes: int | None = None,
    move: bool = True,
) -> list[Any]:
    """Applies a function of ``(..., m, n)`` to many arrays, those of one shape together.

    Arrays that are batches themselves (stacked layers, experts) get a new leading axis, so that a
    sharded batch axis stays where it is. On a mesh of several devices the matrices of a stack are
    moved to whole matrices on single devices and back: one exchange each way per shape.

    Args:
      function: must treat leading axes as batch; returns an array or a tuple of them, each with
        the same leading axes.
      matrices: arrays of rank 2 or more.
      *others: further arguments of the function: one array a matrix, with the matrix's leading
        axes and any axes behind them.
      group_bytes: bytes that one stack of ``matrices`` may hold; None for the measured default of
        the platform.
      move: False leaves the matrices of a mesh where they are: for functions that sum over them,
        whose sums are all that has to travel.

    Returns:
      What the function returns for each matrix, in order; an empty matrix is left as it is.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> x, y = [jnp.ones((2, 3))] * 2, [jnp.ones(2)] * 2
      >>> out = optkit.tree.map_groups(lambda x, y: (2 * x, y + x.sum(-1)), x, y)
      >>> [(a.shape, b.tolist()) for a, b in out]
      [((2, 3), [4.0, 4.0]), ((2, 3), [4.0, 4.0])]
    """
    items: list[Arrays] = list(zip(matrices, *others, strict=True))
    out: list[Any] = [_empty(function, item) for item in items]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, item in enumerate(items):
        if item[0].size:
            key = tuple((x.shape, x.dtype, spec_of(x)) for x in item)
            groups.setdefault(key, []).append(index)
    for indices in groups.values():
        for chunk in _chunks(indices, matrices[indices[0]], group_bytes):
            results = _apply(function, [items[i] for i in chunk], move)
            for index, result in zip(chunk, results, strict=True):
                out[index] = result
    return out


def _empty(function: Function, item: Arrays) -> Any:
    """The result for a matrix without entries; a placeholder for others."""
    if item[0].size:
        return None
    shapes = jax.eval_shape(function, *item)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


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


def _apply(function: Function, items: list[Arrays], move: bool) -> list[Any]:
    first = items[0][0]
    mesh, spec = mesh_of(first), spec_of(first)
    if len(items) == 1 and mesh is None:
        return [function(*items[0])]
    if mesh is None and platform_of(first) == "cpu":
        return _in_blocks(function, items)
    stacks = _stack(items)
    if mesh is None or not move or _whole(first, spec):
        return _unstack(function(*stacks), len(items))
    if spec is None:
        # Or the compiler splits statistics by rows before it stacks them, and exchanges each.
        rank = first.ndim - 2
        stacks = tuple(
            x if x.shape == stacks[0].shape else whole_stack(x, rank, mesh) for x in stacks
        )
    moves = _Moves(mesh, items[0])
    batch = stacks[0].shape[:-2]
    fitting = [axis for axis, size in enumerate(batch) if axis and size % mesh.size == 0]
    if fitting:
        # Layers or experts that fill the mesh: if they are sharded already, nothing moves.
        return _unstack(moves.around(function, stacks, fitting[-1]), len(items))
    if spec is not None and any(part is not None for part in tuple(spec)[:-2]):
        whole = jax.sharding.PartitionSpec(*tuple(spec)[:-2])
        done = function(*(place_stack(x, mesh, whole) for x in stacks))
        return _unstack(moves.placed(done), len(items))
    rank = len(batch)
    count = math.prod(batch)
    missing = padded(count, mesh) - count

    def flat(x: jax.Array) -> jax.Array:
        # Matrices of zeros are safe in every method and give every device the same share.
        # (A pad keeps the partition on Explicit axes, where a concatenation needs equal ones.)
        x = x.reshape(-1, *x.shape[rank:])
        return jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1))) if missing else x

    done = moves.around(function, tuple(map(flat, stacks)), 0, batch=rank)
    done = jax.tree.map(lambda x: x[:count].reshape(*batch, *x.shape[1:]), done)
    return _unstack(done, len(items))


class _Moves:
    """Moves stacks of one group to whole matrices on single devices, and results back."""

    def __init__(self, mesh: Any, item: Arrays) -> None:
        self.mesh = mesh
        # A result lies like the argument of its shape, or replicated.
        self.specs = {x.shape: spec_of(x) for x in reversed(item)}
        self.explicit = spec_of(item[0]) is not None

    def around(self, function: Function, stacks: Arrays, axis: int, batch: int = 1) -> Any:
        """The function between both moves; ``batch`` axes of the leaves' stack are one here."""
        done = function(*(shard_stack(x, self.mesh, axis) for x in stacks))

        def back(x: jax.Array) -> jax.Array:
            spec = self._spec(x.shape[1:], batch - 1)
            return unshard_stack(x, self.mesh, axis, spec)

        return jax.tree.map(back, done)

    def placed(self, done: Any) -> Any:
        """Results of a stack whose batch axes kept their partition."""
        return jax.tree.map(
            lambda x: place_stack(x, self.mesh, self._spec(x.shape[1:], 0) or _REPLICATED), done
        )

    def _spec(self, shape: tuple[int, ...], dropped: int) -> jax.sharding.PartitionSpec | None:
        if not self.explicit:
            return None
        for own, spec in self.specs.items():
            if own[dropped:] == shape and spec is not None:
                return jax.sharding.PartitionSpec(*tuple(spec)[dropped:])
        return _REPLICATED


_REPLICATED = jax.sharding.PartitionSpec()


def _in_blocks(function: Function, items: list[Arrays]) -> list[Any]:
    """Works through a stack in a loop over blocks of BLOCK leaves.

    XLA's CPU compiler makes a kernel for every distinct offset at which a leaf is sliced out of a
    stack, at some 20 ms each. The loop slices at BLOCK offsets only, and keeps the results of each
    offset in a row of arrays that moves up one place a round.
    """
    if len(items) <= BLOCK:
        return _unstack(function(*_stack(items)), len(items))
    rounds = -(-len(items) // BLOCK)
    padding = [tuple(map(jnp.zeros_like, items[0]))] * (rounds * BLOCK - len(items))
    stacks = jax.tree.map(
        lambda x: x.reshape(rounds, BLOCK, *x.shape[1:]), _stack([*items, *padding])
    )
    zero = jax.tree.map(_zeros, jax.eval_shape(function, *items[0]))

    def body(rows: tuple[Any, ...], block: Arrays) -> tuple[tuple[Any, ...], None]:
        done = _unstack(function(*block), BLOCK)
        return tuple((*row[1:], new) for row, new in zip(rows, done, strict=True)), None

    rows, _ = jax.lax.scan(body, tuple((zero,) * rounds for _ in range(BLOCK)), stacks)
    return [rows[i % BLOCK][i // BLOCK] for i in range(len(items))]


def _zeros(like: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros of a shape; inside a ``shard_map`` said to vary where what takes their place does."""
    zeros = jnp.zeros(like.shape, like.dtype)
    over = tuple(getattr(getattr(like, "manual_axis_type", None), "varying", ()))
    return jax.lax.pcast(zeros, over, to="varying") if over else zeros


def _stack(items: list[Arrays]) -> Arrays:
    return tuple(jnp.stack(column) for column in zip(*items, strict=True))


def _unstack(done: Any, count: int) -> list[Any]:
    return [jax.tree.map(lambda x, i=i: x[i], done) for i in range(count)]


def _whole(leaf: jax.Array, spec: jax.sharding.PartitionSpec | None) -> bool:
    """Tells whether an Explicit leaf is a batch of whole matrices already: nothing must move."""
    whole = spec is not None and all(part is None for part in tuple(spec)[-2:])
    return whole and leaf.ndim > 2
