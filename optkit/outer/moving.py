"""Replicas that change places along a leading axis, wherever it lies: each is sent once."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir
from jax.sharding import Mesh, PartitionSpec, auto_axes

from optkit.distributed.workers import axes_of
from optkit.tree.sharding import mesh_of, spec_of

_AXIS = "devices"


class Trip(NamedTuple):
    """Rows that all go the same way between blocks of devices.

    Attributes:
      source: which block each block gets them from.
      leave: which rows of its own each block sends, a tuple a block.
      arrive: where those that come belong in each block.
    """

    source: tuple[int, ...]
    leave: tuple[tuple[int, ...], ...]
    arrive: tuple[tuple[int, ...], ...]


def trips(senders: Sequence[int], blocks: int) -> list[Trip]:
    """Returns how rows reach their places if blocks have equally many, each row leaving once.

    Row i is to come from ``senders[i]``, a permutation. Blocks send as many rows as they get, so
    that rows can be put into rounds in which each block sends one and gets one.

    Args:
      senders: where each row comes from.
      blocks: how many there are.

    Returns:
      Trips, rounds of one way together.
    """
    rows = len(senders) // blocks
    waiting = [
        {target: senders[target] for target in range(block * rows, (block + 1) * rows)}
        for block in range(blocks)
    ]
    found: dict[tuple[int, ...], list[list[tuple[int, int]]]] = {}
    for _ in range(rows):
        matched: dict[int, int] = {}  # block that sends -> row that gets

        def place(block: int, asked: set[int], matched: dict[int, int] = matched) -> bool:
            for target, source in waiting[block].items():
                origin = source // rows
                if origin in asked:
                    continue
                asked.add(origin)
                if origin not in matched or place(matched[origin] // rows, asked):
                    matched[origin] = target
                    return True
            return False

        for block in range(blocks):
            place(block, set())
        targets = sorted(matched.values())
        way = tuple(senders[target] // rows for target in targets)
        pairs = [(waiting[target // rows].pop(target), target) for target in targets]
        found.setdefault(way, []).append(pairs)
    out = []
    for way, rounds in found.items():
        leave = {
            source // rows: tuple(pairs[place][0] % rows for pairs in rounds)
            for place, (source, _) in enumerate(rounds[0])
        }
        arrive = [tuple(pairs[block][1] % rows for pairs in rounds) for block in range(blocks)]
        out.append(Trip(way, tuple(leave[block] for block in range(blocks)), tuple(arrive)))
    return out


def _places(sharding: Any, shape: tuple[int, ...]) -> list[tuple[int, Any]]:
    """Returns for each device its rows' block, and what it shares with one device of each block."""
    where = [
        tuple(part.indices(size)[:2] for part, size in zip(index, shape, strict=True))
        for index in sharding.devices_indices_map(shape).values()
    ]
    starts = sorted({first for (first, _), *_ in where})
    copies = [where[:place].count(index) for place, index in enumerate(where)]
    return [
        (starts.index(index[0][0]), (index[1:], copy))
        for index, copy in zip(where, copies, strict=True)
    ]


def _route(x: jax.Array, axis: Any, places: Sequence[tuple[int, Any]], ways: list[Trip]) -> Any:
    """What a device does: sends rows that it has, and puts those that come in their places."""
    device = {place: index for index, place in enumerate(places)}
    block = jnp.asarray([own for own, _ in places])[lax.axis_index(axis)]
    out = x
    for way in ways:
        pairs = [(device[way.source[own], name], to) for to, (own, name) in enumerate(places)]
        if x.shape[0] == 1:
            return lax.ppermute(x, axis, pairs)
        come = jnp.take(x, jnp.asarray(way.leave)[block], axis=0)
        if any(source != target for source, target in pairs):
            come = lax.ppermute(come, axis, pairs)
        out = out.at[jnp.asarray(way.arrive)[block]].set(come)
    return out


def _along(x: jax.Array, senders: Sequence[int], spec: PartitionSpec) -> jax.Array:
    """Rows along axes of type Explicit, where types tell how they lie."""
    names = axes_of(spec[0] if len(spec) else None)
    if not names:
        return auto_axes(lambda x: _sliced(x, senders), out_sharding=spec)(x)
    mesh: Any = mesh_of(x)
    blocks = math.prod(mesh.shape[name] for name in names)
    places, ways = [(block, None) for block in range(blocks)], trips(senders, blocks)
    run = partial(_route, axis=names, places=places, ways=ways)
    return jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)(x)


def _sliced(x: jax.Array, senders: Sequence[int]) -> jax.Array:
    """Rows in another order, without an array of indices."""
    return jnp.concatenate([lax.slice_in_dim(x, i, i + 1, axis=0) for i in senders])


def turns(senders: Sequence[int]) -> dict[tuple[bool, int], list[int]]:
    """Returns which rows come by which turn of the circle of all rows, few turns for all of them.

    A turn is (whether the circle is turned over, by how much): row i of it is ``i + by``, or
    ``by - i`` of the circle turned over.
    """
    count = len(senders)
    left, out = set(range(count)), dict[tuple[bool, int], list[int]]()
    every = [(over, by) for over in (False, True) for by in range(count)]
    while left:
        fits = {
            (over, by): [i for i in left if (by - i if over else by + i) % count == senders[i]]
            for over, by in every
        }
        best = max(every, key=lambda turn: len(fits[turn]))
        out[best] = sorted(fits[best])
        left -= set(out[best])
    return out


def _turned(x: jax.Array, senders: tuple[int, ...]) -> jax.Array:
    """Rows by turns, which compilers that cannot be asked where they lie send as such.

    Libtpu has no partitioning by callbacks. An array on one device costs the passes over it.
    """
    out = x
    for (over, by), rows in turns(senders).items():
        circle, first = (jnp.flip(x, 0), -1 - by) if over else (x, by)
        come = jnp.roll(circle, -(first % len(senders)), axis=0)
        here = np.isin(np.arange(len(senders)), rows)
        out = jnp.where(here.reshape(-1, *[1] * (x.ndim - 1)), come, out)
    return out


@partial(custom_partitioning, static_argnums=(1,))
def _taken(x: jax.Array, senders: tuple[int, ...]) -> jax.Array:
    return _sliced(x, senders)


def _partition(senders: tuple[int, ...], mesh: Any, given: Any, wanted: Any) -> Any:
    """Called by the compiler, which alone knows where an array lies on axes of type Auto."""
    del mesh, wanted
    sharding, shape = given[0].sharding, given[0].shape
    devices = list(sharding.devices_indices_map(shape))
    every = Mesh(np.array(devices), (_AXIS,))
    ways = trips(senders, shape[0] // sharding.shard_shape(shape)[0])
    places = _places(sharding, shape)
    return every, partial(_route, axis=_AXIS, places=places, ways=ways), sharding, (sharding,)


def _rule(senders: Any, mesh: Any, given: Any, wanted: Any) -> tuple[str, dict[str, Any]]:
    del senders, mesh, wanted
    axes = " ".join(f"a{axis}" for axis in range(given[0].rank))
    return f"{axes} -> {axes}", {"permutation_factors": ("a0",)}


_taken.def_partition(
    _partition,
    infer_sharding_from_operands=lambda senders, mesh, given, wanted: given[0].sharding,
    sharding_rule=_rule,
)

# Around it, so that it has a batch axis and a derivative.
_MOVE = Primitive("move_replicas")


def moved(x: jax.Array, senders: Sequence[int]) -> jax.Array:
    """Returns rows ``x[senders]``, of which each is sent to its new device and to no other.

    Of ``x[senders]`` itself compilers gather all rows on all devices, for constants, too. The one
    of TPUs cannot be told so of axes of type Auto: there rows turn in circles, as often as needed.

    Args:
      x: any array (rows, ...), sharded or not.
      senders: a permutation of the rows.

    Returns:
      An array like x, laid out as it is.
    """
    order, spec = tuple(map(int, senders)), spec_of(x)
    if spec is not None:
        return _along(x, order, spec)
    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    # The program is a parameter, where JAX looks for parts that have to know their devices.
    return _MOVE.bind(x, call=jax.make_jaxpr(_taken, static_argnums=1)(like, order), senders=order)


def _batched(args: Any, dims: Any, *, call: ClosedJaxpr, senders: tuple[int, ...]) -> Any:
    del call
    return moved(jnp.moveaxis(args[0], dims[0], 1), senders), 1


def _transposed(
    cotangent: Any, x: Any, *, call: ClosedJaxpr, senders: tuple[int, ...]
) -> list[Any]:
    del x, call
    return [moved(cotangent, [senders.index(row) for row in range(len(senders))])]


@partial(jax.jit, static_argnames="senders")
def _alone(x: jax.Array, senders: tuple[int, ...]) -> jax.Array:
    return moved(x, senders)


_MOVE.def_abstract_eval(lambda x, *, call, senders: call.out_avals[0])
_MOVE.def_impl(lambda x, *, call, senders: _alone(x, senders))
mlir.register_lowering(
    _MOVE,
    mlir.lower_fun(lambda x, *, call, senders: jaxpr_as_fun(call)(x)[0], multiple_results=False),
)
mlir.register_lowering(
    _MOVE,
    mlir.lower_fun(lambda x, *, call, senders: _turned(x, senders), multiple_results=False),
    platform="tpu",
)
batching.primitive_batchers[_MOVE] = _batched
ad.deflinear2(_MOVE, _transposed)
