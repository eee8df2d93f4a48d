"""Matrices of one shape spread over a mesh, single leaves and stacked ones in one exchange."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.tree.costs import Batch, MatrixFunction, MatrixSharding, choose_mode, merge_widths
from optkit.tree.sharding import place, spec_of
from optkit.tree.spread import Spread

Arrays: TypeAlias = tuple[jax.Array, ...]


class Item(NamedTuple):
    """A leaf and what goes with it, on its way into a flat stack.

    Attributes:
      arrays: the leaf ``(*batch, m, n)`` and the function's other arguments.
      spread: where it lies.
      turn: whether its transpose goes into the stack.
    """

    arrays: Arrays
    spread: Spread
    turn: bool

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes of the leaf."""
        return self.arrays[0].shape[:-2]

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns as they stand in the stack."""
        m, n = self.arrays[0].shape[-2:]
        return (n, m) if self.turn else (m, n)

    @property
    def placed(self) -> Spread:
        """Where a matrix lies as it stands in the stack: without its batch axes."""
        if self.spread.spec is None:
            return self.spread
        rows, columns = tuple(self.spread.spec)[-2:]
        tail = (columns, rows) if self.turn else (rows, columns)
        return self.spread._replace(spec=PartitionSpec(*tail))

    def flat(self) -> Arrays:
        """Returns the arrays with one batch axis, the leaf as it stands in the stack."""
        rank, count = len(self.batch), math.prod(self.batch)
        first, *others = (
            x if rank == 1 else x.reshape(count, *x.shape[rank:]) for x in self.arrays
        )
        return (first.mT if self.turn else first, *others)


def turned(x: jax.Array, function: MatrixFunction, spread: Spread, writes: bool | None) -> bool:
    """Tells whether the transpose of a leaf goes into its stack.

    The short side comes first. Of square matrices, a side that is cut over devices: so one exchange
    serves those that are cut by inputs and by outputs. Where only the compiler knows the cut,
    kernels that write to the residual stream are taken to lie the other way round than others.
    """
    m, n = x.shape[-2:]
    if not function.turns or m < n:
        return False
    if m > n:
        return True
    if spread.spec is None:
        return bool(writes)
    return not spread.part(-2) and bool(spread.part(-1))


def spread_groups(
    function: MatrixFunction, items: Sequence[Item], sharding: MatrixSharding, budget: int
) -> list[Any]:
    """Applies a function to leaves on a mesh, all matrices of a shape in one stack.

    Args:
      function: of ``(k, m, n)`` and whatever comes with each item.
      items: the leaves.
      sharding: how the work is spread.
      budget: bytes of a stack on one device.

    Returns:
      What the function returns for each leaf, in order.
    """
    out: list[Any] = [None] * len(items)
    for members in _groups(function, items, sharding):
        for chunk in _chunks(members, items, budget):
            done = _Stack(function, [items[i] for i in chunk]).run(sharding)
            for index, result in zip(chunk, done, strict=True):
                out[index] = result
    return out


def _groups(
    function: MatrixFunction, items: Sequence[Item], sharding: MatrixSharding
) -> list[list[int]]:
    """Indices of the leaves that go into one stack."""
    groups: dict[Any, list[int]] = {}
    for index, item in enumerate(items):
        rank = len(item.batch)
        others = tuple((x.shape[rank:], x.dtype, spec_of(x)) for x in item.arrays[1:])
        key = (item.placed, item.matrix, item.arrays[0].dtype, others)
        groups.setdefault(key, []).append(index)
    if not function.widens or function.flops is None or sharding.mode not in ("auto", "layer"):
        return list(groups.values())
    alike: dict[Any, list[list[int]]] = {}
    for (placed, (m, _), dtype, others), members in groups.items():
        # Columns that are cut cannot be added to without moving the others.
        apart = () if _whole_columns(placed) and not others else tuple(members)
        alike.setdefault((placed, m, dtype, others, apart), []).append(members)
    merged = []
    for parts in alike.values():
        batches = [_batch(function, [items[i] for i in members]) for members in parts]
        devices = items[parts[0][0]].spread.devices
        for joined in merge_widths(batches, devices, function.flops):
            merged.append(list(itertools.chain.from_iterable(parts[i] for i in joined)))
    return merged


def _whole_columns(spread: Spread) -> bool:
    return len(spread.mesh.axis_names) == 1 if spread.spec is None else not spread.part(-1)


def _batch(function: MatrixFunction, items: Sequence[Item]) -> Batch:
    count = sum(math.prod(item.batch) for item in items)
    m, n = items[0].matrix[0], max(item.matrix[1] for item in items)
    dtype = items[0].arrays[0].dtype if function.wire is None else jnp.dtype(function.wire)
    return Batch(count, m, n, dtype.itemsize)


def _chunks(members: list[int], items: Sequence[Item], budget: int) -> list[list[int]]:
    """Cuts a group where the share of each device would exceed the budget."""
    out: list[list[int]] = []
    held = 0
    for index in members:
        size = items[index].arrays[0].size * items[index].arrays[0].dtype.itemsize
        if not out or held + size > budget * items[index].spread.devices:
            out.append([])
            held = 0
        out[-1].append(index)
        held += size
    return out


class _Stack:
    """Leaves of one group as a single stack ``(k, m, n)``."""

    def __init__(self, function: MatrixFunction, items: list[Item]) -> None:
        self.function, self.items = function, items
        self.spread = items[0].placed
        self.width = max(item.matrix[1] for item in items)
        self.counts = [math.prod(item.batch) for item in items]
        self.specs = {
            x.shape[1:]: PartitionSpec(*tuple(spec_of(x) or ())[1:])
            for x in reversed(items[0].flat())
        }

    def run(self, sharding: MatrixSharding) -> list[Any]:
        """The function's results, leaf by leaf."""
        batch = _batch(self.function, self.items)
        moves = not self.spread.part(-1) if self.spread.spec is not None else True
        mode = choose_mode(batch, self.spread.devices, self.function, sharding.mode, moves=moves)
        stacks = self._stacks()
        if mode == "gram":
            done = self._split(stacks[0])
        elif mode == "replicate":
            done = self._replicated(stacks)
        else:
            done = self._layers(stacks)
        return self._leaves(done)

    def _stacks(self) -> Arrays:
        """One stack an argument, the matrices in the dtype they travel in."""
        columns = [item.flat() for item in self.items]
        wire = self.function.wire or columns[0][0].dtype
        first = [self._widened(own[0].astype(wire)) for own in columns]
        stacks = [_join(first), *(_join(each) for each in list(zip(*columns, strict=True))[1:])]
        if not self.spread.explicit:
            # Or the compiler splits statistics by rows before it stacks them, and exchanges each.
            # Factors lie spread already, a matrix a layer.
            stacks[1:] = [
                x
                if x.shape == stacks[0].shape or (self.function.spread and x.ndim == 3)
                else place(x, self.spread.mesh, PartitionSpec(*(None,) * x.ndim))
                for x in stacks[1:]
            ]
        return tuple(stacks)

    def _widened(self, x: jax.Array) -> jax.Array:
        missing = self.width - x.shape[-1]
        return jnp.pad(x, ((0, 0), (0, 0), (0, missing))) if missing else x

    def _layers(self, stacks: Arrays) -> Any:
        stacks = tuple(map(self._filled, stacks))
        done = self.function(*(self.spread.shard(x, 0) for x in stacks))

        def back(x: jax.Array) -> jax.Array:
            x = self.spread.unshard(x, 0, self._spec(x))
            # Or XLA cuts up and converts what came back before it updates the parameters with it,
            # as work of its own.
            return x if self.function.wire is None else jax.lax.optimization_barrier(x)

        return jax.tree.map(back, done)

    def _filled(self, x: jax.Array) -> jax.Array:
        """The stack with zeros at its end, of a length that the devices divide.

        Matrices of zeros are safe in every method and give every device the same share.
        """
        missing = -sum(self.counts) % self.spread.devices
        if not missing:
            return x
        # (A pad keeps the partition on Explicit axes, where a concatenation needs equal ones.)
        x = jnp.pad(x, ((0, missing), *((0, 0),) * (x.ndim - 1)))
        if self.spread.explicit:
            return x
        # Or the compiler pads what it has moved, each device some of its neighbours' matrices.
        free = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
        return place(x, self.spread.mesh, PartitionSpec(None, *free))

    def _replicated(self, stacks: Arrays) -> Any:
        mesh = self.spread.mesh
        done = self.function(*(place(x, mesh, PartitionSpec(*(None,) * x.ndim)) for x in stacks))

        def back(x: jax.Array) -> jax.Array:
            x = place(x, mesh, PartitionSpec(*(None,) * x.ndim))
            if not self.spread.explicit:
                return x
            return place(x, mesh, PartitionSpec(None, *self._spec(x)))

        return jax.tree.map(back, done)

    def _split(self, stack: jax.Array) -> jax.Array:
        mesh, names = self.spread.mesh, self.spread.axes
        function = self.function.split
        assert function is not None  # choose_mode has looked
        missing = -self.width % self.spread.devices
        x = jnp.pad(stack, ((0, 0), (0, 0), (0, missing))) if missing else stack
        # As the leaf lies, so that columns which are cut already stay where they are.
        cut = (*self.spread.part(-1), *(n for n in names if n not in self.spread.part(-1)))
        spec = PartitionSpec(None, None, cut)
        x = place(x, mesh, spec)
        done = jax.shard_map(
            lambda block: function(block, names),
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            axis_names=set(names),
        )(x)
        if self.spread.explicit:
            # Before the cut: of what lies on Explicit axes no part can be cut out that these do not
            # divide.
            whole = (*done.shape[1:-1], self.width)
            done = place(done, mesh, PartitionSpec(None, *self.specs.get(whole, PartitionSpec())))
        return done[..., : self.width] if missing else done

    def _spec(self, x: jax.Array) -> PartitionSpec:
        """A result lies like the argument of its shape, or replicated."""
        return self.specs.get(x.shape[1:], PartitionSpec())

    def _leaves(self, done: Any) -> list[Any]:
        ends = list(itertools.accumulate(self.counts))
        return [
            jax.tree.map(lambda x, i=i: self._leaf(x, self.items[i], ends[i]), done)
            for i in range(len(self.items))
        ]

    def _leaf(self, x: jax.Array, item: Item, end: int) -> jax.Array:
        first, (m, n) = item.arrays[0], item.matrix
        x = x[end - math.prod(item.batch) : end]
        if x.shape[1:] == (m, self.width):
            x = x[..., :n] if n < self.width else x
            x = x.mT if item.turn else x
        if self.function.wire is not None and x.dtype == jnp.dtype(self.function.wire):
            x = x.astype(first.dtype)
        return x if len(item.batch) == 1 else x.reshape(*item.batch, *x.shape[1:])


def _join(parts: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate(parts) if len(parts) > 1 else parts[0]
