"""Averages over workers of which every part travels in a codec's form, there and back."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, auto_axes

from optkit.catalogue import LeafBytes, register
from optkit.codecs import Codec, SignCodec, UniformCodec
from optkit.distributed.workers import (
    AxisName,
    PerWorker,
    as_varying,
    check_axis_name,
    check_bound,
    check_local,
    count_workers,
    exchange,
    gather,
    mean,
)
from optkit.transforms.base import Transformation, check_same_leaves
from optkit.transforms.error_feedback import check_codec
from optkit.tree import (
    PyTree,
    leaf_bytes,
    leaves_with_paths,
    map_with_path,
    tree_bytes,
    upcast,
    values_by_path,
)
from optkit.tree.sharding import mesh_of, spec_of, whole_stack, zeros_beside

ONE_BIT = SignCodec(zero="plus", size="rms")


class CompressedMeanState(NamedTuple):
    """State of ``compressed_mean`` and ``onebit_mean``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    # {"worker": at each leaf (1, L), "server": (1, L/workers)} float32: what this worker did not
    # send, and what was lost of the mean of the chunk it serves; L is the leaf's size, filled up.
    error: PerWorker | None


def padded_size(size: int, workers: int, codec: Codec) -> int:
    """Entries of a flat array that codes of whole bytes and blocks cut into equal chunks."""
    unit = math.lcm(workers, 8, getattr(codec, "block", None) or 1)
    return -(-size // (workers * unit)) * workers * unit


def flat(x: jax.Array, length: int) -> jax.Array:
    """The entries in a row, filled up with zeros."""
    row = x.reshape(-1).astype(jnp.float32)
    return jnp.pad(row, (0, length - row.size)) if length > row.size else row


def pays(leaf: Any, workers: int, codec: Codec) -> bool:
    """Says whether less is sent of a leaf in the codec's form than by a plain average of it."""
    chunk = codec.shapes((padded_size(jnp.size(leaf), workers, codec) // workers,))
    return workers * tree_bytes(chunk) < leaf_bytes(leaf)


Parts = dict[str, jax.Array]
Send = Callable[[jax.Array], jax.Array]


def _together(parts: list[Parts], send: Send) -> list[Parts]:
    """Sends arrays (rows, ...) of one dtype as one."""
    out: list[Parts] = [{} for _ in parts]
    named = [(index, name) for index, own in enumerate(parts) for name in own]
    for dtype in dict.fromkeys(parts[index][name].dtype for index, name in named):
        same = [(i, n) for i, n in named if parts[i][n].dtype == dtype]
        rows = [parts[i][n].reshape(parts[i][n].shape[0], -1) for i, n in same]
        come, at = send(jnp.concatenate(rows, axis=1)), 0
        for (i, n), row in zip(same, rows, strict=True):
            piece = come[:, at : at + row.shape[1]]
            out[i][n] = piece.reshape(come.shape[0], *parts[i][n].shape[1:])
            at += row.shape[1]
    return out


def _cut(parts: Parts, chunk: dict[str, jax.ShapeDtypeStruct], workers: int) -> Parts:
    """One row for each worker; a scale of the whole array goes to all of them."""
    return {
        name: x.reshape(workers, *chunk[name].shape)
        if x.size == workers * math.prod(chunk[name].shape)
        else jnp.broadcast_to(x, (workers, *x.shape))
        for name, x in parts.items()
    }


def compressed_average(
    arrays: Sequence[jax.Array],
    here: Sequence[jax.Array],
    served: Sequence[jax.Array],
    codec: Codec,
    axis_name: AxisName,
    dtypes: Sequence[Any] | None = None,
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array]]:
    """Returns means of flat arrays (L,), and the new errors here and of the chunk served here."""
    workers = count_workers(axis_name)
    sums = [x + e for x, e in zip(arrays, here, strict=True)]
    shapes = [(x.size // workers,) for x in sums]
    coded = [codec.encode(y) for y in sums]
    kept = [codec.decode(own, y.shape) for y, own in zip(sums, coded, strict=True)]
    lost = [y - x for y, x in zip(sums, kept, strict=True)]
    if workers == 1:  # coded once more it is the same
        return mean(kept, axis_name), lost, list(served)
    rows = [
        _cut(own, codec.shapes(shape), workers) for own, shape in zip(coded, shapes, strict=True)
    ]
    come = _together(rows, lambda x: exchange(x, axis_name))

    def read(own: Parts, shape: tuple[int, ...]) -> jax.Array:
        return jax.vmap(lambda one: codec.decode(one, shape))(own)

    means = [
        jnp.mean(read(own, shape), axis=0) + e
        for own, shape, e in zip(come, shapes, served, strict=True)
    ]
    coded = [codec.encode(z) for z in means]
    all_parts = [{name: x[None] for name, x in own.items()} for own in coded]
    spread = _together(all_parts, lambda x: gather(x[0], axis_name))
    out = [
        read(own, shape).reshape(x.shape)
        for own, shape, x in zip(spread, shapes, sums, strict=True)
    ]
    sent = [codec.decode(own, shape) for own, shape in zip(coded, shapes, strict=True)]
    if dtypes is not None:  # what is lost in 16 bits, all lose alike; who serves it feeds it back
        sent = [upcast(x.astype(dtype)) for x, dtype in zip(sent, dtypes, strict=True)]
    return out, lost, [z - x for z, x in zip(means, sent, strict=True)]


def fresh_errors(tree: PyTree, codec: Codec, axis_name: AxisName, who: str) -> PerWorker:
    """Zeros for the leaves of a tree, see ``CompressedMeanState``."""
    check_bound(axis_name, who)
    workers = count_workers(axis_name)

    def zeros(leaf: Any, share: int) -> jax.Array:
        length = padded_size(jnp.size(leaf), workers, codec) // share
        return zeros_beside(leaf, (1, length), jnp.float32, lambda *_: PartitionSpec())

    return PerWorker(
        {
            name: jax.tree.map(lambda leaf, share=share: zeros(leaf, share), tree)
            for name, share in (("server", workers), ("worker", 1))
        }
    )


def average_tree(
    tree: PyTree, error: PerWorker | None, codec: Codec, axis_name: AxisName
) -> tuple[PyTree, PerWorker | None]:
    """Returns the compressed mean of each leaf, in its dtype, and the new errors."""
    structure: Any = jax.tree.structure(tree)
    named = leaves_with_paths(tree)
    workers, paths = count_workers(axis_name), [path for path, leaf in named if leaf.size]
    leaves = {path: leaf for path, leaf in named if leaf.size}
    lengths = {path: padded_size(leaf.size, workers, codec) for path, leaf in leaves.items()}
    held: dict[str, dict[str, jax.Array]] = {}
    for side in ("worker", "server"):
        if error is None:
            share = workers if side == "server" else 1
            held[side] = {p: jnp.zeros((1, n // share), jnp.float32) for p, n in lengths.items()}
        else:
            check_same_leaves(dict(named), dict(leaves_with_paths(error.of_worker[side])), "state")
            held[side] = dict(leaves_with_paths(error.of_worker[side]))

    def run(given: list[jax.Array], here: list[jax.Array], served: list[jax.Array]) -> Any:
        rows = [flat(x, lengths[path]) for path, x in zip(paths, given, strict=True)]
        errors = [[x[0] for x in side] for side in (here, served)]
        rows, mine, others = as_varying((rows, *errors), axis_name)
        dtypes = [x.dtype for x in given]
        out, *lost = compressed_average(rows, mine, others, codec, axis_name, dtypes)
        shaped = [
            row[: x.size].reshape(x.shape).astype(x.dtype)
            for row, x in zip(out, given, strict=True)
        ]
        return (shaped, *([x[None] for x in side] for side in lost))

    specs = [spec_of(leaf) for leaf in leaves.values()]
    if any(spec is not None for spec in specs):  # Explicit axes want to be told
        whole = [PartitionSpec()] * len(specs)
        run = auto_axes(run, out_sharding=(specs, whole, whole))
    given = list(leaves.values())
    sides = [[held[side][path] for path in paths] for side in ("worker", "server")]
    shaped, here, served = run(given, *sides) if paths else ([], [], [])
    meshes = [mesh_of(leaf) for leaf in given]
    here, served = (
        [
            x if mesh is None else whole_stack(x, 0, mesh)
            for x, mesh in zip(side, meshes, strict=True)
        ]
        for side in (here, served)
    )
    found = dict(zip(paths, shaped, strict=True))
    out = structure.unflatten([found.get(path, leaf) for path, leaf in named])
    if error is None:
        return out, None
    new = {
        side: structure.unflatten(
            [dict(zip(paths, values, strict=True)).get(p, held[side][p]) for p, _ in named]
        )
        for side, values in (("server", served), ("worker", here))
    }
    return out, PerWorker(new)


def average_where_it_pays(
    tree: PyTree, error: PerWorker | None, codec: Codec, axis_name: AxisName
) -> tuple[PyTree, PerWorker | None]:
    """Returns ``average_tree`` of the leaves for which it pays, and plain means of the others."""
    chosen = paying(tree, codec, axis_name)
    coded, error = average_tree(chosen, error, codec, axis_name)
    found = dict(leaves_with_paths(coded))
    rest = {path: leaf for path, leaf in leaves_with_paths(tree) if path not in found}
    found |= dict(zip(rest, mean(list(rest.values()), axis_name), strict=True))
    structure: Any = jax.tree.structure(tree)
    return structure.unflatten([found[path] for path, _ in leaves_with_paths(tree)]), error


def paying(tree: PyTree, codec: Codec, axis_name: AxisName) -> PyTree:
    """The leaves of which less is sent in the codec's form; None in place of the others."""
    workers = count_workers(axis_name)
    return jax.tree.map(lambda leaf: leaf if pays(leaf, workers, codec) else None, tree)


def only_active(tree: PyTree, active: PyTree | None) -> PyTree:
    """Multiplies leaves by the masks that a tree or prefix of one has for them."""
    if active is None:
        return tree
    masks = values_by_path(tree, active)
    return map_with_path(
        lambda path, x: x * jnp.asarray(masks[path]).astype(x.dtype) if path in masks else x, tree
    )


def check_cut(name: str, value: Any) -> Codec:
    """Returns a codec whose codes can be cut into chunks, or raises with the remedy."""
    codec = check_codec(name, value, "SignCodec()")
    if not isinstance(codec, SignCodec | UniformCodec) or codec.is_random:
        raise ValueError(
            f"{name}={codec!r} cannot be cut into chunks, one for each worker to average; give "
            "optkit.codecs.SignCodec, or UniformCodec with rounding='nearest'"
        )
    return codec


def _state_bytes(least: int) -> dict[str, float]:
    def held(size: int) -> int:
        return 8 * padded_size(size, 1, ONE_BIT) if size >= least else 0

    return {"*": LeafBytes(8, held, "in whole chunks")}


@register(
    kind="part",
    family="communication",
    paper=("1-bit Adam: Communication Efficient Large-Scale Training", "2102.02888", 2021),
    state_bytes=_state_bytes(2),
    tags=("compression", "error feedback", "8-bit", "data parallel"),
    chain="C(g + e) > exchange > mean > C(mean + e') > gather",
    example={"compressor": SignCodec(zero="plus")},
)
def compressed_mean(
    compressor: Codec,
    axis_name: AxisName = None,
    *,
    error_feedback: bool = True,
    active: PyTree | None = None,
    every_leaf: bool = False,
) -> Transformation:
    """Averages gradients over workers, each part of which travels in a codec's form.

    First in the chain, inside ``jax.shard_map`` (or ``jax.vmap(axis_name=...)``), fed with the
    gradient of this worker's own batch. Each leaf, flat and filled up with zeros, is cut into as
    many chunks as there are workers, and each worker serves one of them:

    1. ``y = g + e``; ``C(y)`` is sent, chunk by chunk, to who serves it; ``e <- y - C(y)``;
    2. the server of a chunk: ``z = mean(C(y)) + s``; ``C(z)`` is sent to all; ``s <- z - C(z)``.

    What leaves is ``C(z)`` of all chunks. ``mean(g + e) + s = u + mean(e') + s'`` for the new
    errors: nothing is lost.

    Leaves of which no less is sent that way than of themselves are averaged plainly, in one
    exchange: chunks are whole blocks of the codec and have scales, which is much for a bias. With
    ``UniformCodec``'s blocks of 256 codes it pays for leaves of more than ``65*workers`` numbers.

    Args:
      compressor: ``optkit.codecs.SignCodec`` or ``UniformCodec``. ``UniformCodec(bits=8)`` sends a
        byte an entry; of fewer bits codes take a byte, too.
      axis_name: see ``optkit.powersgd_mean``.
      error_feedback: keep what was not sent for the next step, here and at servers.
      active: a tree (or prefix) of masks of zeros and ones that the mean is multiplied by: for
        entries whose gradient is always 0, which signs cannot say.
      every_leaf: compress those for which it does not pay, too, as ``optkit.onebit_mean`` does.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps dtypes. State bytes of a worker: 4 per
      parameter, and 4/workers for the chunk that it serves; 8 with one worker; none for leaves that
      are averaged plainly.

    Raises:
      TypeError: a compressor that is no codec.
      ValueError: one whose codes cannot be cut into chunks; in update
        ``axis_name=None`` inside a ``shard_map``.
      NameError: used outside of its axis.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> codec = optkit.codecs.UniformCodec(bits=8)
      >>> tx = optkit.compressed_mean(codec, "workers", every_leaf=True)
      >>> own = jnp.array([[1.0, -2.0], [3.0, -4.0]])
      >>> u = jax.vmap(lambda g: tx.update(g, tx.init(g))[0], axis_name="workers")(own)
      >>> u[0].round(2).tolist(), bool((u[0] == u[1]).all())
      ([2.0..., -3.0], True)

    Reference:
      The exchange is that of Tang et al., 1-bit Adam, arXiv 2102.02888, for any codec that can be
      cut.
    """
    codec = check_cut("compressor", compressor)
    check_axis_name(axis_name)

    def init_fn(params: PyTree) -> CompressedMeanState:
        count = jnp.zeros((), jnp.int32)
        if not error_feedback:
            return CompressedMeanState(count, None)
        check_bound(axis_name, "compressed_mean")
        chosen = params if every_leaf else paying(params, codec, axis_name)
        error = fresh_errors(chosen, codec, axis_name, "compressed_mean")
        return CompressedMeanState(count, error)

    def update_fn(
        updates: PyTree, state: CompressedMeanState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, CompressedMeanState]:
        del params, extra_args
        check_local(updates, axis_name, "compressed_mean")
        average = average_tree if every_leaf else average_where_it_pays
        out, error = average(updates, state.error, codec, axis_name)
        return only_active(out, active), CompressedMeanState(state.count + 1, error)

    return Transformation(init_fn, update_fn)


@register(
    kind="part",
    family="communication",
    paper=("1-bit Adam: Communication Efficient Large-Scale Training", "2102.02888", 2021),
    state_bytes=_state_bytes(0),
    tags=("compression", "error feedback", "sign", "data parallel"),
    chain="signs of g + e > exchange > mean > signs of mean + e' > gather",
)
def onebit_mean(
    axis_name: AxisName = None, *, error_feedback: bool = True, active: PyTree | None = None
) -> Transformation:
    """Averages gradients over workers, sending signs: a bit an entry there, and one back.

    It is ``optkit.compressed_mean`` with ``y`` sent as ``norm(y)/sqrt(L) * sign(y)``, L the leaf's
    size filled up to a multiple of workers*lcm(workers, 8); the sign of 0 is 1. Signs are packed,
    eight in a byte.

    Steps of such means alone are rough: a single large entry makes all of its leaf large. It is
    made for momentum, behind which ``optkit.onebit_adam`` has it.

    Args:
      axis_name: see ``optkit.powersgd_mean``.
      error_feedback: see ``optkit.compressed_mean``.
      active: see there; a bit cannot say 0.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps dtypes. State bytes of a worker: 4 per
      parameter, and 4/workers for the chunk that it serves; 8 with one worker.

    Raises:
      ValueError: in update ``axis_name=None`` inside a ``shard_map``.
      NameError: used outside of its axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.onebit_mean()
      >>> g = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0])
      >>> u, state = tx.update(g, tx.init(g))
      >>> u.tolist(), float(jnp.abs(state.error.of_worker["worker"]).max())
      ([1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 1.0], 0.0)

    Reference:
      Tang et al., 1-bit Adam, arXiv 2102.02888, in the layout of DeepSpeed 0.15.1
      (runtime/comm/compressed.py).
    """
    return compressed_mean(
        ONE_BIT, axis_name, error_feedback=error_feedback, active=active, every_leaf=True
    )
