"""LoQT: pretraining by adapters on a quantized base, into which they are merged now and then."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from optkit.codecs import Codec, TableCodec
from optkit.codecs.base import stored
from optkit.linalg.bases import leading_basis
from optkit.lora.algebra import product
from optkit.lora.find import Adapter, AdapterTree, check_scale, check_served, scale_of
from optkit.lora.naming import AdapterLayout, Naming, Patterns, Scale, words_of
from optkit.transforms.base import check_gradients
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.tree import PyTree, leaves_with_paths, upcast
from optkit.tree.paths import wildcards

NF4 = TableCodec(kind="nf4", bits=4, block=64)
MergeTimes = Literal["static", "exponential", "linear"]


class Merged(NamedTuple):
    """What ``merge_and_reinit`` returns."""

    params: PyTree  # as given, with new adapters and base weights on the codec's grid
    codes: dict[str, Any]  # path of each base weight -> its codes, as ``optkit.codecs`` store them
    errors: dict[str, jax.Array]  # path of A -> (...,), norm of what is lost of each weight


class _Found(NamedTuple):
    """A base weight and its adapter after a merge."""

    base: jax.Array  # (fan_out, fan_in), decoded
    codes: Any
    a: jax.Array
    b: jax.Array
    error: jax.Array


def trains_b(adapter: Adapter) -> bool:
    """Tells which factor of an adapter LoQT trains: the one of the longer side."""
    return adapter.fan_in <= adapter.fan_out


def _merge(
    adapter: Adapter, scale: Any, codec: Codec, compensate: int, quantize_frozen: bool, turned: bool
) -> Callable[..., _Found]:
    """The merge of one matrix, a function of (base, A, B, gradient of W), maths' layout."""

    def read(weight: jax.Array) -> tuple[jax.Array, Any]:
        kept = weight.mT if turned else weight  # blocks lie in the leaf as it is stored
        codes = codec.encode(kept)
        decoded = codec.decode(codes, kept.shape)
        return decoded.mT if turned else decoded, stored(codec, codes)

    def merge(base: jax.Array, a: jax.Array, b: jax.Array, g: jax.Array) -> _Found:
        weight = base + scale * product(b, a)
        # Of a gradient of zeros any basis would be an arbitrary one.
        is_b, known = trains_b(adapter), jnp.any(g != 0)
        if is_b:
            frozen = jnp.where(known, leading_basis(g.mT, adapter.rank).mT, a)
        else:
            frozen = jnp.where(known, leading_basis(g, adapter.rank), b)
        if quantize_frozen:
            frozen = codec.round_trip(frozen)
        inverse = jnp.linalg.pinv(frozen)

        def filled(trained: jax.Array) -> tuple[jax.Array, jax.Array]:
            return (frozen, trained) if is_b else (trained, frozen)

        def found(target: jax.Array, trained: jax.Array | None) -> tuple[_Found, jax.Array]:
            decoded, codes = read(target)
            missing = weight - decoded
            if trained is None:
                fitted = product(missing, inverse) if is_b else product(inverse, missing)
                fitted = fitted / scale
            else:
                fitted = trained
            own = filled(fitted)
            held = scale * product(own[1], own[0])
            error = jnp.sqrt(jnp.sum(jnp.square(missing - held)))
            return _Found(decoded, codes, *own, error), weight - held

        if compensate == 0:
            zeros = jnp.zeros_like(b if is_b else a)
            return found(weight, zeros)[0]
        best, target = found(weight, None)
        for _ in range(compensate - 1):
            new, target = found(target, None)
            better = new.error < best.error
            best = jax.tree.map(lambda x, y, on=better: jnp.where(on, x, y), new, best)
        return best

    return merge


def _bases(tree: AdapterTree, naming: Naming, base: Patterns, params: PyTree) -> list[str]:
    """Paths of the base weights that the adapters belong to."""
    known: dict[Any, str] = {}
    for path, _ in leaves_with_paths(params):
        for number, word in enumerate(words_of(base)):
            key = wildcards(word, path)
            if key is not None:
                known[(number, *key)] = path
    out: list[str] = []
    for adapter in tree.adapters:
        keys = [
            (number, *(wildcards(word, adapter.a) or ("?",)))
            for number, word in enumerate(words_of(naming.a))
        ]
        own = next((one for one in keys if one in known), None)
        if own is None:
            raise ValueError(
                f"the adapter {adapter.a!r} has no base weight: base={base!r} names no leaf beside "
                "it; give the pattern that leaves the same open in its path as a="
            )
        out.append(known[own])
    return out


def merge_and_reinit(
    params: PyTree,
    grads: PyTree,
    *,
    base: Patterns = "kernel",
    scale: Scale = 0.5,
    codec: Codec = NF4,
    compensate: int = 0,
    quantize_frozen: bool = False,
    a: Patterns = "lora_a",
    b: Patterns = "lora_b",
    layout: AdapterLayout = "flax",
) -> Merged:
    """Merges adapters into their quantized base weights and starts them anew in a new subspace.

    For each base W' with its adapter, G the gradient of W:

    1. ``W = W' + s B A``;
    2. the factor of the shorter side becomes G's leading singular vectors of that side and is
       frozen: with fan_in <= fan_out ``A = V_r^T``, else ``B = U_r``;
    3. without compensation the other factor becomes 0 and ``W' = codec(W)``;
    4. else, from ``X = W``, ``compensate`` times: ``W' = codec(X)``; the trained factor is the one
       whose ``s B A`` is closest to ``W - W'``; ``X = W - s B A``. Of all those the one that loses
       least of W is kept, so that more rounds never lose more.

    Train with ``optkit.loqt`` between merges; its moments go on through them. In the reference the
    step of a merge has gradients of 0.

    Args:
      params: parameters: base weights as arrays on the codec's grid (before the first merge: any).
      grads: gradients of the same tree; those of the base weights are read, all of one batch.
      base: pattern of the base weights, which leaves the same open in their paths as ``a`` does.
      scale: s of ``W' + s B A``, not divided by the rank.
      codec: how base weights are stored.
      compensate: rounds of 4.
      quantize_frozen: store the frozen factor by the codec too; it is the decoded one that is
        returned.
      a: pattern of the A leaves, see ``optkit.lora.adapters``.
      b: pattern of the B leaves.
      layout: "flax" or "peft", of base weights too: (..., fan_in, fan_out) or turned round.

    Returns:
      Parameters with decoded base weights; the codes by path, which are all that has to be kept of
      them; and what was lost, by A's path.

    Raises:
      ValueError: an adapter without a base weight, or of another shape; what
        ``optkit.lora.adapters`` refuses.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"kernel": jnp.ones((4, 6)), "lora_a": jnp.ones((4, 2)) / 4}
      >>> params["lora_b"] = jnp.ones((2, 6))
      >>> grads = params | {"kernel": jnp.eye(4, 6)}
      >>> merged = optkit.lora.merge_and_reinit(params, grads)
      >>> merged.params["kernel"][0, 0].item(), merged.params["lora_b"].any().item()
      (1.25, False)

    Reference:
      Loeschcke et al., LoQT, arXiv 2405.16528. A gradient of zeros keeps the frozen factor.
    """
    check_scale(scale)
    check_static_int("compensate", compensate, low=0)
    check_gradients(grads, params)
    naming = Naming(a, b, None, layout)
    tree = AdapterTree(naming, params)
    check_served(scale, tree, params)
    paths = _bases(tree, naming, base, params)
    leaves, slopes = (tree.structure.flatten_up_to(x) for x in (params, grads))
    left, right = tree.split(params)
    new_a, new_b, codes, errors = [], [], {}, {}
    for adapter, path, own_a, own_b in zip(tree.adapters, paths, left, right, strict=True):
        at = tree.index[path]
        weight, slope = (upcast(tree.turn(x[at])) for x in (leaves, slopes))
        if weight.shape != (*adapter.batch, adapter.fan_out, adapter.fan_in):
            raise ValueError(
                f"the base weight {path!r} of shape {leaves[at].shape} does not fit the adapter "
                f"{adapter.a!r} of fan_in {adapter.fan_in} and fan_out {adapter.fan_out}"
            )
        merge = _merge(
            adapter, scale_of(scale, adapter), codec, compensate, quantize_frozen, tree.turned
        )
        for _ in adapter.batch:
            merge = jax.vmap(merge)
        found = merge(weight, upcast(own_a), upcast(own_b), slope)
        leaves[at] = tree.turn(found.base).astype(leaves[at].dtype)
        codes[path], errors[adapter.a] = found.codes, found.error
        new_a.append(found.a)
        new_b.append(found.b)
    merged = tree.merge(tree.structure.unflatten(leaves), new_a, new_b)
    return Merged(merged, codes, errors)


def merge_steps(
    steps: int,
    gap: int,
    *,
    times: MergeTimes = "exponential",
    psi: float = 1.2,
    increment: int = 0,
) -> list[int]:
    """Returns the steps before which LoQT merges: those of a training of so many.

    Args:
      steps: of the training.
      gap: steps between two merges, or what is added to it.
      times: "static": every ``gap`` steps; "exponential": the i-th gap is ``gap + int(psi**i)``, i
        from 0; "linear": it is ``gap + i*increment``.
      psi: base of "exponential".
      increment: of "linear".

    Returns:
      Steps counted from 0, in order; the first one is 0.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import optkit
      >>> optkit.lora.merge_steps(50, 10, psi=2.0)
      [0, 11, 23, 37]

    Reference:
      Loeschcke et al., LoQT, arXiv 2405.16528.
    """
    check_static_int("steps", steps)
    check_static_int("gap", gap)
    check_static_int("increment", increment, low=0)
    check_number("psi", psi, low=0.0)
    check_choice("times", times, get_args(MergeTimes))
    out: list[int] = []
    at = 0
    while at < steps:
        more = {"static": 0, "exponential": int(psi ** len(out)), "linear": increment * len(out)}
        out.append(at)
        at += gap + more[times]
    return out
