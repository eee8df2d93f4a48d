"""One compiled loop a shape: leaves of one shape are stacked and worked on together."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.tree.costs import MatrixFunction, MatrixSharding, Mode, as_function
from optkit.tree.flat_stacks import Item, spread_groups, turned
from optkit.tree.sharding import mesh_of, place_stack, platform_of, spec_of, whole_stack
from optkit.tree.spread import Spread, spread_of

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


class Reading(NamedTuple):
    """What is known of each matrix beyond its array, see ``MatrixLayout.reading``.

    Attributes:
      specs: its partition, where Auto axes hide it; None if unknown.
      writes: whether it writes to the residual stream; None if unknown.
    """

    specs: Sequence[PartitionSpec | None]
    writes: Sequence[bool | None]


def map_groups(
    function: Function,
    matrices: Sequence[jax.Array],
    *others: Sequence[jax.Array],
    group_bytes: int | None = None,
    move: bool = True,
    sharding: MatrixSharding | None = None,
    reading: Reading | None = None,
) -> list[Any]:
    """Applies a function of ``(..., m, n)`` to many arrays, those of one shape together.

    On one device, arrays that are batches themselves (stacked layers, experts) get a new leading
    axis. On a mesh of several devices all matrices of a shape, single or stacked, become one stack
    and are moved to whole matrices on single devices and back: one exchange each way per shape
    (``sharding`` tells of other ways). A ``MatrixFunction`` lets more be done: transposes of one
    shape in one stack, widths of zeros so that one exchange serves two shapes, 16-bit entries on
    the way. Stacks whose layers or experts fill the mesh are split along that axis as they are.

    Args:
      function: must treat leading axes as batch; returns an array or a tuple of them, each with
        the same leading axes.
      matrices: arrays of rank 2 or more.
      *others: further arguments of the function: one array a matrix, with the matrix's leading
        axes and any axes behind them.
      group_bytes: bytes that one stack of ``matrices`` may hold on a device; None for the measured
        default of the platform.
      move: False leaves the matrices of a mesh where they are: for functions that sum over them,
        whose sums are all that has to travel.
      sharding: how work is spread over a mesh; None for the cheapest way.
      reading: what else is known of the matrices.

    Returns:
      What the function returns for each matrix, in order; an empty matrix is left as it is.

    Raises:
      ValueError: the sharding names an axis that the mesh does not have, or asks for what the
        function cannot do.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> x, y = [jnp.ones((2, 3))] * 2, [jnp.ones(2)] * 2
      >>> out = optkit.tree.map_groups(lambda x, y: (2 * x, y + x.sum(-1)), x, y)
      >>> [(a.shape, b.tolist()) for a, b in out]
      [((2, 3), [4.0, 4.0]), ((2, 3), [4.0, 4.0])]
    """
    known = as_function(function)
    sharding = MatrixSharding() if sharding is None else sharding
    none = (None,) * len(matrices)
    specs, writes = (none, none) if reading is None else reading
    items: list[Arrays] = list(zip(matrices, *others, strict=True))
    out: list[Any] = [_empty(known, item) for item in items]
    groups: dict[tuple[Any, ...], list[int]] = {}
    ways: dict[int, tuple[Spread | None, bool]] = {}
    flat: dict[int, Item] = {}
    for index, item in enumerate(items):
        if not item[0].size:
            continue
        spread = spread_of(item[0], sharding, specs[index]) if move else None
        turn = spread is not None and turned(item[0], known, spread, writes[index])
        if spread is not None and _flat(item[0], spread, sharding.mode):
            flat[index] = Item(item, spread, turn)
        else:
            square = item[0].ndim > 1 and item[0].shape[-2] == item[0].shape[-1]
            ways[index] = spread, turn and square and spread is not None and spread.spec is None
            key = (tuple((x.shape, x.dtype, spec_of(x)) for x in item), spread)
            groups.setdefault(key, []).append(index)
    for indices in groups.values():
        for chunk in _chunks(indices, matrices[indices[0]], group_bytes):
            turns = [ways[i][1] for i in chunk]
            results = _apply(known, [items[i] for i in chunk], ways[chunk[0]][0], turns)
            for index, result in zip(chunk, results, strict=True):
                out[index] = result
    budget = GROUP_BYTES["default"] if group_bytes is None else group_bytes
    done = spread_groups(known, list(flat.values()), sharding, budget)
    for index, result in zip(flat, done, strict=True):
        out[index] = result
    return out


def _empty(function: MatrixFunction, item: Arrays) -> Any:
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
    # Each device of a mesh holds its share of a stack.
    devices = 1 if mesh is None else mesh.size
    size = max(1, devices * budget // (example.size * example.dtype.itemsize))
    if platform == "cpu":
        size = min(size, MOST_LEAVES)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def _apply(
    function: MatrixFunction, items: list[Arrays], spread: Spread | None, turns: list[bool]
) -> list[Any]:
    """Works through leaves of one shape that are not put into flat stacks of matrices."""
    first = items[0][0]
    mesh = mesh_of(first)
    if len(items) == 1 and mesh is None:
        return [function(*items[0])]
    if mesh is None and platform_of(first) == "cpu":
        return _in_blocks(function, items)
    stacks = _stack(items)
    if spread is None or _whole(first, spread.spec):
        return _unstack(function(*stacks), len(items))
    if not spread.explicit and not function.spread:
        # Or the compiler splits statistics by rows before it stacks them, and exchanges each.
        rank = first.ndim - 2
        stacks = tuple(
            x if x.shape == stacks[0].shape else whole_stack(x, rank, mesh) for x in stacks
        )
    results = _Results(spread, items[0])
    axis = _filling(first, spread)
    if axis is not None:
        # Layers or experts that fill the mesh: if they are sharded already, nothing moves.
        own = [_sent(x, function.wire, turn) for (x, *_), turn in zip(items, turns, strict=True)]
        done = function(*(spread.shard(x, axis + 1) for x in (jnp.stack(own), *stacks[1:])))
        done = jax.tree.map(lambda x: spread.unshard(x, axis + 1, results.spec(x)), done)
        done = done if function.wire is None else jax.lax.optimization_barrier(done)
        return [
            jax.tree.map(
                lambda x, like=item[0], turn=turn: _received(x, like, function.wire, turn), each
            )
            for item, each, turn in zip(items, _unstack(done, len(items)), turns, strict=True)
        ]
    # Batch axes that are cut keep their partition.
    assert spread.spec is not None
    whole = PartitionSpec(*tuple(spread.spec)[:-2])
    done = function(*(place_stack(x, mesh, whole) for x in stacks))
    back = (lambda x: place_stack(x, mesh, results.spec(x))) if spread.explicit else (lambda x: x)
    return _unstack(jax.tree.map(back, done), len(items))


def _flat(leaf: jax.Array, spread: Spread, mode: Mode) -> bool:
    """Tells whether a leaf's matrices go into a stack with those of other leaves."""
    if _whole(leaf, spread.spec):
        return False
    if spread.spec is not None and any(part is not None for part in tuple(spread.spec)[:-2]):
        return False
    known = spread.spec is not None
    return known or mode not in ("auto", "layer") or _filling(leaf, spread) is None


def _filling(leaf: jax.Array, spread: Spread) -> int | None:
    """The last batch axis that gives every device the same number of whole matrices."""
    fitting = [i for i, size in enumerate(leaf.shape[:-2]) if size % spread.devices == 0]
    return fitting[-1] if fitting else None


def _sent(x: jax.Array, wire: Any, turn: bool) -> jax.Array:
    """A leaf as it is moved to whole matrices."""
    return (x.mT if turn else x).astype(wire or x.dtype)


def _received(x: jax.Array, leaf: jax.Array, wire: Any, turn: bool) -> jax.Array:
    """A result as the leaf lies; others than matrices are left alone."""
    if x.shape != leaf.shape:
        return x
    x = x.mT if turn else x
    return x if wire is None or x.dtype != jnp.dtype(wire) else x.astype(leaf.dtype)


class _Results(NamedTuple):
    """Where results of a stack of leaves lie: like the argument of their shape, or replicated."""

    spread: Spread
    item: Arrays

    def spec(self, x: jax.Array) -> PartitionSpec:
        """The partition of one leaf's share of a result."""
        if self.spread.explicit:
            for own in self.item:
                spec = spec_of(own)
                if own.shape == x.shape[1:] and spec is not None:
                    return spec
        return PartitionSpec()


def _in_blocks(function: MatrixFunction, items: list[Arrays]) -> list[Any]:
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
