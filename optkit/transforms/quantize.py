"""Optimizer state in few bits: any transformation's moments, decoded and encoded at each step."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.catalogue import LeafBytes, register
from optkit.codecs import (
    Bf16Codec,
    Codec,
    Fp8Codec,
    IdentityCodec,
    TableCodec,
)
from optkit.codecs.base import is_stored
from optkit.kernels.block_codec import Implementation
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    keep_dtypes,
    prng_key,
    update_inner,
)
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.transforms.moment_rules import StateRules, check_named, check_rules, kind_of
from optkit.transforms.stored_kernel import kernel_of
from optkit.transforms.stored_leaves import leaf_by_leaf, readers_of, write
from optkit.tree import PyTree, Selector, match_state, selects
from optkit.tree.paths import full_path_string
from optkit.tree.selection import check_selects

CodecName = Literal["dynamic8", "dynamic4", "fp8", "linear8", "bf16", "float32"]
CodecLike: TypeAlias = CodecName | Codec | Mapping[str, CodecName | Codec]


# Leaves below it stay in float32.
MIN_SIZE = 4096


def stored_bytes(size: int, moments: int, codec: Codec) -> float:
    """Bytes of so many moments of a leaf, where its rows are as long as a block of the codec."""
    return moments * (4 * size if size < MIN_SIZE else codec.bytes((size,)))


# Instead of Adam's two moments.
_BYTES = LeafBytes(
    stored_bytes(1 << 20, 2, TableCodec()) / (1 << 20) - 8,
    lambda size: stored_bytes(size, 2, TableCodec()) - 8 * size,
    f"over Adam; 0 in leaves below {MIN_SIZE}",
)


class QuantizeState(NamedTuple):
    """State of ``quantize_state``."""

    inner: PyTree  # the inner state, moments of large leaves as {"codes@NAME": ..., "scale@NAME"}
    key: jax.Array | None  # PRNG key, constant; None if nothing is rounded at random
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array | None  # type: ignore[assignment]  # int32 scalar, finished updates, likewise


def named_codec(name: str, **options: Any) -> Codec:
    """Returns a codec by its short name, for values of both signs."""
    codecs: dict[str, Callable[..., Codec]] = {
        "dynamic8": TableCodec,
        "dynamic4": lambda **own: TableCodec(bits=4, exponent_bits=3, **{"block": 128, **own}),
        "linear8": lambda **own: TableCodec("linear", **own),
        "fp8": Fp8Codec,
        "bf16": Bf16Codec,
        "float32": IdentityCodec,
    }
    if name not in codecs:
        raise ValueError(
            f"codec={name!r} is none of {', '.join(codecs)}; give one of those, or a codec such as "
            "optkit.codecs.TableCodec(block=2048)"
        )
    return codecs[name](**options)


def codecs_of(codec: CodecLike) -> dict[str, Codec]:
    """Returns the codec of signed moments and that of unsigned ones."""
    if isinstance(codec, str):
        codec = named_codec(codec)
    if isinstance(codec, Codec):
        return {"signed": codec.for_sign(True), "unsigned": codec.for_sign(False)}
    if not isinstance(codec, Mapping) or {*codec} - {"signed", "unsigned"}:
        raise TypeError(
            f"codec={codec!r} must be a name ({', '.join(get_args(CodecName))}), a codec, or "
            '{"signed": codec, "unsigned": codec}'
        )
    out = {}
    for sign, own in codec.items():
        if isinstance(own, str):
            own = named_codec(own).for_sign(sign == "signed")
        if not isinstance(own, Codec):
            raise TypeError(f"codec[{sign!r}]={own!r} must be a codec of optkit.codecs")
        if own.for_sign(sign == "signed") != own:
            raise ValueError(
                f"codec[{sign!r}]={own.name} is for the other sign: it would "
                + ("cut off negative moments" if sign == "signed" else "waste half of its codes")
                + f"; give codec.for_sign({sign == 'signed'})"
            )
        out[sign] = own
    return out


def _is_moment(leaf: Any, param: Any) -> bool:
    floating = jnp.issubdtype(getattr(leaf, "dtype", jnp.int32), jnp.floating)
    return param is not None and floating and np.shape(leaf) == np.shape(param)


@register(
    kind="wrapper",
    family="memory",
    paper=("8-bit Optimizers via Block-wise Quantization", "2110.02861", 2021),
    state_bytes={"*": _BYTES},
    tags=("quantization", "8-bit", "4-bit", "fp8", "low-bit"),
    chain="decode moments > inner > encode moments",
)
def quantize_state(
    inner: optax.GradientTransformation,
    codec: CodecLike = "dynamic8",
    *,
    rules: StateRules = (),
    min_size: int = MIN_SIZE,
    keep: Selector | None = None,
    key: int | jax.Array = 0,
    implementation: Implementation | None = None,
) -> Transformation:
    """Keeps the moments of any optimizer in 8, 4 or 16 bits; its own code need not know.

    1. Each large moment is decoded to float32; 2. the inner transformation runs on them as ever,
    so that its update uses the new moments before they are rounded; 3. they are encoded.

    Moments are the floating-point leaves of the state that belong to a parameter and have its
    shape. Which codec a moment takes follows from the name of its field: ``mu``, ``momentum``,
    ``trace`` and the like have both signs, ``nu`` and the like none. A large moment of a name that
    is not known is refused at init, because a codec of the wrong sign would destroy it: name it in
    ``rules``. Sums that only grow would stall once an increment is less than half a step of the
    codec; keep them.

    Blocks lie along the last axis of a leaf where it is as long as a block
    (``optkit.codecs.blocks``), so that they do not depend on how the leaf is sharded, and at most
    maxima travel. Leaves of shorter rows are flattened; their 4-bit codes are whole on each device
    unless the codec has ``layout="rows"``.

    Under jit leaves are decoded one after another. Without it all of them are in memory at once,
    as they are in an ``init`` without jit. On a TPU a kernel takes the leaves whose update follows
    entry by entry (Adam, Lion, momentum; not what compares entries, such as ``cautious``): nothing
    is written out in float32. **It was compiled for TPUs and run as "interpret"; it has not been
    timed on one.**

    A non-finite gradient makes the blocks non-finite that it falls into.

    Args:
      inner: any transformation, with or without learning rate.
      codec: "dynamic8" (blocks of 256), "dynamic4" (128), "linear8" (for momenta: small second
        moments become 0, and Adam's steps many times the rate), "fp8", "bf16", "float32" (for
        comparison), a codec of ``optkit.codecs``, or ``{"signed": ..., "unsigned": ...}`` of
        either.
      rules: ``(pattern, kind)``, first match wins, before the names that are known: a wildcard on
        the field's name, or with a slash on the whole path of the state; "signed", "unsigned" or
        "keep" (not encoded).
      min_size: smaller leaves stay in float32.
      keep: leaves that stay in float32: role, glob, function of (path, leaf); as in ``route``.
      key: seed or PRNG key of codecs that round at random.
      implementation: "xla" takes no kernel; "pallas" the one of the platform that the program is
        lowered for, TPUs or NVIDIA's GPUs: of one device, on Explicit axes of a mesh, or inside of
        ``jax.shard_map``; it refuses what it does not serve. "interpret" runs it on any device,
        slowly. None chooses: the kernel on a single TPU, where it serves a leaf.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: those of the codec for each large
      moment, with "dynamic8" ``1 + 4/256`` an entry; the inner state's for the rest.
      ``optkit.plan`` counts them. Encoded leaves are dicts whose keys name the codec, so that a
      checkpoint of another one does not fit.

    Raises:
      ValueError: an unknown codec, or one of the wrong sign; at init a large moment that no rule
        names or one calls wrongly, a rule or ``keep`` that names nothing; at update a state that
        another codec stored, or a leaf or codec that the kernel asked for does not serve.
      TypeError: a codec of another type.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> params = {"w": jnp.ones((64, 256))}
      >>> tx = optkit.quantize_state(optax.adam(1e-3))
      >>> row, = optkit.plan(tx, params).rows
      >>> row.state_bytes / params["w"].size  # in place of 8
      2.03125
      >>> state = jax.eval_shape(tx.init, params)
      >>> sorted(state.inner[0].nu["w"])
      ['codes@dynamic8_unsigned_256_auto', 'scale@dynamic8_unsigned_256_auto']

    Reference:
      Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861; Li, Chen and
      Zhu, Memory Efficient Optimizers with 4-bit States, arXiv 2309.01507 (tables as in torchao).
    """
    inner = check_transformation("inner", inner)
    codecs = codecs_of(codec)
    check_rules(rules)
    check_static_int("min_size", min_size, low=0)
    if implementation is not None:
        check_choice("implementation", implementation, get_args(Implementation))
    by_name = {own.name: own for own in codecs.values()}
    is_random = any(own.is_random for own in by_name.values())

    def chosen(match: Any) -> Codec | None:
        """The codec of a leaf of a fresh inner state."""
        if not _is_moment(match.leaf, match.param) or np.size(match.param) < min_size:
            return None
        if keep is not None and selects(keep, match.param_path or "", match.param):
            return None
        kind = kind_of(match, rules)
        if kind != "keep" and kind not in codecs:
            raise ValueError(
                f"state {match.owner!r} of leaf {match.param_path!r} is {kind}, and codec has no "
                f"{kind!r}; add it, or give rules=[({match.owner.rsplit('/', 1)[-1]!r}, 'keep')]"
            )
        return None if kind == "keep" else codecs[kind]

    def encode(own: Codec, x: jax.Array, path: Any, random: jax.Array | None) -> Any:
        if own.is_random and random is not None:
            random = jax.random.fold_in(random, zlib.crc32(full_path_string(path).encode()))
        return write(own, x, random if own.is_random else None)

    def init_fn(params: PyTree) -> QuantizeState:
        state = inner.init(params)
        fresh, count = None, None
        if is_random:
            fresh = jnp.copy(prng_key(key))
            count = jnp.zeros((), jnp.int32)
        matches = list(match_state(state, params))
        check_named(rules, {m.owner for m in matches if _is_moment(m.leaf, m.param)})
        if keep is not None:
            check_selects("keep", keep, params)
        leaves = []
        for match in matches:
            own = chosen(match)
            leaf = match.leaf
            leaves.append(leaf if own is None else encode(own, leaf, match.key_path, fresh))
        return QuantizeState(jax.tree.unflatten(jax.tree.structure(state), leaves), fresh, count)

    def update_fn(
        updates: PyTree, state: QuantizeState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, QuantizeState]:
        if not hasattr(state, "key"):
            raise ValueError(
                f"the state is {type(state).__name__} and not that of quantize_state: give what "
                "tx.init(params) of the wrapped optimizer returned (moments start anew)"
            )
        random = None
        if state.key is not None and state.count is not None:
            random = jax.random.fold_in(state.key, state.count)
        nodes, structure = jax.tree.flatten(state.inner, is_leaf=is_stored)
        readers = readers_of(state.inner, updates, by_name)

        def run(full: list[jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
            leaves = list(nodes)
            for i, x in zip(readers, full, strict=True):
                leaves[i] = x
            whole = jax.tree.unflatten(structure, leaves)
            out, new = update_inner(inner, updates, whole, params, extra_args)
            out = _in_own_dtypes(inner, out, updates, params, extra_args)
            return jax.tree.leaves(out), jax.tree.leaves(keep_dtypes(new, whole))

        def again(i: int, x: jax.Array) -> Any:
            return encode(readers[i].codec, x, readers[i].path, random)

        given = jax.tree.leaves(updates)
        traced = any(isinstance(x, jax.core.Tracer) for x in (*given, *jax.tree.leaves(state)))
        kernel = kernel_of(implementation, updates)
        if readers and (traced or kernel is not None):
            out, new = leaf_by_leaf(run, nodes, readers, again, given, kernel)
        else:
            full = [reader.read(nodes[i], given[reader.leaf]) for i, reader in readers.items()]
            out, new = run(full)
            new = [again(i, x) if i in readers else x for i, x in enumerate(new)]
        count = None if state.count is None else state.count + 1
        steps = jax.tree.unflatten(jax.tree.structure(updates), out)
        return steps, QuantizeState(jax.tree.unflatten(structure, new), state.key, count)

    return Transformation(init_fn, update_fn)


def _in_own_dtypes(
    inner: Transformation,
    out: PyTree,
    updates: PyTree,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> PyTree:
    """Gives 16-bit updates back in the dtype they have without float32 moments."""
    if all(u.dtype == g.dtype for u, g in zip(*map(jax.tree.leaves, (out, updates)), strict=True)):
        return out

    def alone(g: PyTree) -> PyTree:
        return inner.update(g, inner.init(g if params is None else params), params, **extra_args)[0]

    given = jax.eval_shape(alone, updates)
    return jax.tree.map(lambda u, like: u.astype(like.dtype), out, given)
