"""State that codecs stored: how it is read, and worked through leaf by leaf."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec, auto_axes

from optkit.codecs import Codec
from optkit.codecs.base import Parts, Shape, codec_name, is_stored, parts_of, stored
from optkit.transforms.lazily import Lazily
from optkit.tree import PyTree, leaves_with_paths, match_state
from optkit.tree.paths import full_path_string
from optkit.tree.sharding import mesh_of, spec_of, stored_spec


class Reader(NamedTuple):
    """How a stored moment is read."""

    codec: Codec
    path: Any  # its key path in the inner state
    shape: tuple[int, ...]  # of its parameter
    leaf: int  # number of its parameter

    def read(self, node: PyTree, like: jax.Array) -> jax.Array:
        """The moment in float32, placed like its leaf of the updates."""
        return read(self.codec, node, self.shape, spec_of(like))


def read(codec: Codec, node: PyTree, shape: Shape, spec: PartitionSpec | None) -> jax.Array:
    """Returns what a codec stored, in float32; a spec tells where, on an Explicit mesh."""
    if spec is None:
        return codec.decode(parts_of(node), shape)
    # Blocks are cut by reshapes that an Explicit mesh wants to be told the result of.
    return auto_axes(lambda parts: codec.decode(parts, shape), out_sharding=spec)(parts_of(node))


def round_trip(codec: Codec, x: jax.Array, random: jax.Array | None) -> jax.Array:
    """Returns in float32 what is read of an array once it was stored, placed like the array."""
    spec = spec_of(x)
    trip = codec.round_trip if spec is None else auto_axes(codec.round_trip, out_sharding=spec)
    return trip(x, random)


def renewed(node: PyTree, parts: Mapping[str, jax.Array]) -> PyTree:
    """Returns a node with new parts, in its own type: flax.nnx hands dicts back as its own."""
    names = [path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(node)]
    return jax.tree.unflatten(jax.tree.structure(node), [parts[name] for name in names])


def leaf_key(step_key: jax.Array | None, path: str) -> jax.Array | None:
    """The PRNG key of a leaf at a step, if there is one: noise depends on nothing else."""
    return None if step_key is None else jax.random.fold_in(step_key, zlib.crc32(path.encode()))


def write(codec: Codec, x: jax.Array, random: jax.Array | None = None) -> Parts:
    """Returns what a codec stores for a moment, under names that tell the codec."""
    spec = spec_of(x)
    if spec is None:
        return stored(codec, codec.encode(x, random))
    specs = {
        name: stored_spec(part.shape, x.shape, spec, mesh_of(x))
        for name, part in codec.shapes(x.shape).items()
    }
    return stored(codec, auto_axes(codec.encode, out_sharding=specs)(x, random))


def readers_of(state: PyTree, updates: PyTree, by_name: Mapping[str, Codec]) -> dict[int, Reader]:
    """How those nodes of an inner state are read that a codec stored, by their number."""
    numbers = {path: i for i, (path, _) in enumerate(leaves_with_paths(updates))}
    owners = {
        full_path_string(match.key_path[:-1]): (np.shape(match.param), numbers[match.param_path])
        for match in match_state(state, updates)
        if match.is_stored and match.param_path is not None
    }
    out = {}
    nodes = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_stored)
    for i, (path, node) in enumerate(nodes):
        if not is_stored(node):
            continue
        place = full_path_string(path)
        own = by_name.get(codec_name(node))
        if own is None:
            raise ValueError(
                f"state {place!r} was stored by codec {codec_name(node)!r}, and this "
                f"quantize_state reads {', '.join(map(repr, by_name))}; build it with that codec, "
                "or start from tx.init(params)"
            )
        if place not in owners:
            raise ValueError(
                f"state {place!r} belongs to no leaf of the updates, which are "
                f"{', '.join(numbers) or 'none'}; give gradients of the tree that init was given"
            )
        shape, number = owners[place]
        wanted = {name: part.shape for name, part in own.shapes(shape).items()}
        found = {name: np.shape(part) for name, part in parts_of(node).items()}
        if found != wanted:
            raise ValueError(
                f"state {place!r}: {own.name} stored parts of shapes {found}, and a leaf of shape "
                f"{shape} has {wanted}; give gradients of the leaves that init was given"
            )
        out[i] = Reader(own, path, shape, number)
    return out


def leaf_by_leaf(
    run: Callable[[list[jax.Array]], Any],
    nodes: Sequence[Any],
    readers: Mapping[int, Reader],
    encode: Callable[[int, jax.Array], Any],
    updates: Sequence[jax.Array],
    kernel: Callable[..., Any] | None = None,
) -> tuple[list[jax.Array], list[Any]]:
    """Decodes, updates and encodes one leaf after another, as far as ``run`` does not couple them.

    Left to itself the compiler may decode all leaves before it encodes the first. A kernel takes
    the leaves that it serves, and never writes out what it decodes.

    Args:
      run: gives updates and new state leaves for decoded moments.
      nodes: the stored state.
      readers: how some of its nodes are read.
      encode: encodes the moment of a number.
      updates: the leaves of the updates.
      kernel: takes some of the leaves, as ``stored_kernel.Kernel`` does.

    Returns:
      The updates and the new nodes.
    """
    moments = list(readers)
    last: list[PyTree] = []

    def decoded(position: int) -> jax.Array:
        i = moments[position]
        node = _after(nodes[i], last[-1]) if last else nodes[i]
        return readers[i].read(node, updates[readers[i].leaf])

    abstract = [
        jax.eval_shape(readers[i].read, nodes[i], updates[readers[i].leaf]) for i in moments
    ]
    lazily = Lazily(run, abstract, decoded)
    count = len(updates)
    out: list[Any] = [None] * count
    new: list[Any] = [None] * len(nodes)
    for leaf in range(count):
        own = [i for i in moments if readers[i].leaf == leaf]
        if own and kernel is not None:
            wanted, given = [*(count + i for i in own), leaf], [moments.index(i) for i in own]
            piece = lazily.elementwise(wanted, given)
            done = kernel(piece, [readers[i] for i in own], [nodes[i] for i in own], updates[leaf])
            if done is not None:
                out[leaf], fresh = done
                for i, node in zip(own, fresh, strict=True):
                    new[i] = node
                continue
        # The update sees the same array that is encoded, and not a second copy of its history.
        full = jax.lax.optimization_barrier(lazily.outputs([count + i for i in own]))
        for i, x in zip(own, full, strict=True):
            lazily.replace(count + i, x)
            new[i] = encode(i, x)
        out[leaf] = lazily.outputs([leaf])[0]
        if own:
            last[:] = [[new[i] for i in own]]
    rest = [i for i in range(len(nodes)) if i not in readers]
    for i, x in zip(rest, lazily.outputs([count + i for i in rest]), strict=True):
        new[i] = x
    return out, new


def _after(node: PyTree, earlier: PyTree) -> PyTree:
    """Returns a node that cannot be computed with before ``earlier`` has been computed."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return jax.lax.optimization_barrier((node, earlier))[0]
    # The CPU's scheduler does not see barriers: it takes a dependence, on what is never true, from
    # an operation that is not fused into what follows.
    firsts = [x[(0,) * x.ndim].astype(jnp.float32) for x in jax.tree.leaves(earlier) if x.size]
    never = jax.lax.sort(jnp.stack([*firsts, jnp.zeros(())]))[0] < -jnp.inf

    def held(x: jax.Array) -> jax.Array:
        if x.dtype.itemsize == 1:  # floats of 8 bits are slow to select
            bits = jax.lax.bitcast_convert_type(x, jnp.uint8)
            return jax.lax.bitcast_convert_type(jnp.where(never, jnp.uint8(0), bits), x.dtype)
        return jnp.where(never, jnp.zeros((), x.dtype), x)

    return jax.tree.map(held, node)
