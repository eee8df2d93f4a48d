"""Replicas that change places along a leading axis, wherever it lies: each is sent once."""

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
from jax.sharding import Mesh

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


def _route(x: jax.Array, places: list[tuple[int, Any]], ways: list[Trip]) -> jax.Array:
    """What a device does: sends rows that it has, and puts those that come in their places."""
    device = {place: index for index, place in enumerate(places)}
    block = jnp.asarray([own for own, _ in places])[lax.axis_index(_AXIS)]
    out = x
    for way in ways:
        pairs = [(device[way.source[own], name], to) for to, (own, name) in enumerate(places)]
        if x.shape[0] == 1:
            return lax.ppermute(x, _AXIS, pairs)
        come = jnp.take(x, jnp.asarray(way.leave)[block], axis=0)
        if any(source != target for source, target in pairs):
            come = lax.ppermute(come, _AXIS, pairs)
        out = out.at[jnp.asarray(way.arrive)[block]].set(come)
    return out


@partial(custom_partitioning, static_argnums=(1,))
def _taken(x: jax.Array, senders: tuple[int, ...]) -> jax.Array:
    # Without an array of indices, for which there is no place here.
    return jnp.concatenate([lax.slice_in_dim(x, i, i + 1, axis=0) for i in senders])


def _partition(senders: tuple[int, ...], mesh: Any, given: Any, wanted: Any) -> Any:
    """Called by the compiler, which alone knows where an array lies on axes of type Auto."""
    del mesh, wanted
    sharding, shape = given[0].sharding, given[0].shape
    devices = list(sharding.devices_indices_map(shape))
    every = Mesh(np.array(devices), (_AXIS,))
    ways = trips(senders, shape[0] // sharding.shard_shape(shape)[0])
    places = _places(sharding, shape)
    return every, lambda own: _route(own, places, ways), sharding, (sharding,)


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
    """Returns rows ``x[senders]``, of which the compiler sends each to its new device directly.

    Of ``x[senders]`` itself it gathers all rows on all devices, for constants, too.

    Args:
      x: any array (rows, ...), sharded or not.
      senders: a permutation of the rows.

    Returns:
      An array like x, laid out as it is.
    """
    order = tuple(map(int, senders))
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
batching.primitive_batchers[_MOVE] = _batched
ad.deflinear2(_MOVE, _transposed)
