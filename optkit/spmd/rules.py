"""What each operation on whole arrays is on blocks: alike entry by entry, or with an exchange."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from optkit.spmd.blocks import Block, Devices, Kind, Part, Parts, as_varying, replicated, varying

Rule = Callable[[Devices, Any, list[Block]], list[Block]]

# fmt: off
ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh",
    "bitcast_convert_type", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p",
    "cos", "cosh", "digamma", "div", "eq", "eq_to", "erf", "erf_inv", "erfc", "exp", "exp2",
    "expm1", "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le", "le_to", "lgamma",
    "log", "log1p", "logistic", "lt", "lt_to", "max", "min", "mul", "ne", "neg", "nextafter",
    "not", "or", "population_count", "pow", "real", "reduce_precision", "rem", "round", "rsqrt",
    "select_n", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign", "sin",
    "sinh", "sqrt", "square", "stop_gradient", "sub", "tan", "tanh", "xor",
}
_MATRICES = {
    "cholesky", "eigh", "geqrf", "householder_product", "lu", "qr", "schur", "svd",
    "triangular_solve", "tridiagonal",
}
# fmt: on
_REDUCTIONS: dict[str, Kind] = {
    "reduce_sum": "sum",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_or": "max",
    "reduce_and": "min",
}
_CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")


def bound(eqn: Any, values: Sequence[jax.Array]) -> list[jax.Array]:
    """Applies an operation to values, all of which vary where one of them does."""
    names = frozenset().union(*map(varying, values)) if values else frozenset()
    given = [as_varying(x, names) for x in values] if names else values
    out = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def on_whole(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """What is always right: every device computes everything."""
    values = [devices.whole(b, range(len(b.shape))).value for b in ins]
    return [replicated(x) for x in bound(eqn, values)]


def on_blocks(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """Applies one operation."""
    name = eqn.primitive.name
    if name in ELEMENTWISE and _fits(eqn, ins):
        return elementwise(devices, eqn, ins)
    if name in _MATRICES and any(block.is_split for block in ins):
        return _matrices(devices, eqn, ins)
    return _RULES.get(name, on_whole)(devices, eqn, ins)


def _fits(eqn: Any, ins: list[Block]) -> bool:
    """Whether the result has the shape of each array that is no single number."""
    shapes = {block.shape for block in ins} - {()}
    return not shapes or shapes == {tuple(eqn.outvars[0].aval.shape)}


def elementwise(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """Each device computes its own entries."""
    arrays = [block for block in ins if block.shape]
    if not arrays:
        return on_whole(devices, eqn, ins)
    parts, laid = _alike(devices, arrays)
    rest = iter(laid)
    values = [next(rest) if block.shape else block.value for block in ins]
    return [Block(x, parts, arrays[0].shape) for x in bound(eqn, values)]


def _alike(
    devices: Devices, ins: Sequence[Block], whole: Sequence[int] = ()
) -> tuple[Parts, list[jax.Array]]:
    """Arrays of one shape, but for the dimensions ``whole``, laid alike with these whole.

    What all of them hold once stays so.
    """
    ins = [devices.whole(block, whole) for block in ins]
    parts = devices.common(ins)
    values = [devices.laid(block, parts, once=True).value for block in ins]
    sizes = [max(size) for size in zip(*(x.shape for x in values), strict=True)]

    def repeated(x: jax.Array) -> jax.Array:
        shape = tuple(
            own if i in whole else size
            for i, (own, size) in enumerate(zip(x.shape, sizes, strict=True))
        )
        return x if x.shape == shape else jnp.broadcast_to(x, shape)

    return parts, [repeated(x) for x in values]


def _reduce(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """Over own entries, then over devices."""
    (block,), axes = ins, tuple(eqn.params["axes"])
    kind = _REDUCTIONS[eqn.primitive.name]
    block = devices.whole(block, [axis for axis in axes if block.is_once(axis)])
    names = tuple(name for axis in axes for name in block.parts[axis])
    (value,) = bound(eqn, [block.value])
    if names:
        is_bool = value.dtype == jnp.bool_
        value = devices.total(value.astype(jnp.int32) if is_bool else value, names, kind)
        value = value.astype(jnp.bool_) if is_bool else value
    kept = [axis for axis in range(len(block.shape)) if axis not in axes]
    parts = tuple(block.parts[axis] for axis in kept)
    return [Block(value, parts, tuple(block.shape[axis] for axis in kept))]


def _along(key: str) -> Rule:
    """An operation along one dimension, or several, of arrays of one shape."""

    def rule(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
        given = eqn.params[key]
        rank = len(ins[0].shape)
        axes = [i % rank for i in ((given,) if isinstance(given, int) else given)]
        parts, values = _alike(devices, ins, axes)
        out = []
        for x, var in zip(bound(eqn, values), eqn.outvars, strict=True):
            shape = tuple(var.aval.shape)
            kept = len(shape) == rank  # argmax drops its dimensions
            own = parts if kept else tuple(p for i, p in enumerate(parts) if i not in axes)
            out.append(Block(x, own, shape))
        return out

    return rule


def _concatenate(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    parts, values = _alike(devices, ins, [eqn.params["dimension"]])
    (value,) = bound(eqn, values)
    return [Block(value, parts, tuple(eqn.outvars[0].aval.shape))]


def _stack(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    axis = eqn.params["axis"]
    parts, values = _alike(devices, ins)
    (value,) = bound(eqn, values)
    return [Block(value, (*parts[:axis], (), *parts[axis:]), tuple(eqn.outvars[0].aval.shape))]


def _identity(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    values = bound(eqn, [block.value for block in ins])
    return [Block(x, b.parts, b.shape) for x, b in zip(values, ins, strict=True)]


def _dot_general(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """Free dimensions stay split; over contracted ones, devices add their products."""
    (left_sum, right_sum), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    left, right = (devices.whole(b, [i for i in range(len(b.shape)) if b.is_once(i)]) for b in ins)
    used: set[str] = set()

    def take(*options: Part) -> Part:
        for part in options:
            if part and used.isdisjoint(part):
                used.update(part)
                return part
        return ()

    of_left: dict[int, Part] = {}
    of_right: dict[int, Part] = {}
    for i, j in (
        *zip(left_batch, right_batch, strict=True),
        *zip(left_sum, right_sum, strict=True),
    ):
        of_left[i] = of_right[j] = take(left.parts[i], right.parts[j])
    free_left = [i for i in range(len(left.shape)) if i not in of_left]
    free_right = [j for j in range(len(right.shape)) if j not in of_right]
    of_left |= {i: take(left.parts[i]) for i in free_left}
    of_right |= {j: take(right.parts[j]) for j in free_right}
    left = devices.laid(left, tuple(of_left[i] for i in range(len(left.shape))))
    right = devices.laid(right, tuple(of_right[j] for j in range(len(right.shape))))
    (value,) = bound(eqn, [left.value, right.value])
    names = tuple(name for i in left_sum for name in of_left[i])
    if names:
        value = devices.total(value, names, "sum")
    parts = (
        *(of_left[i] for i in left_batch),
        *(of_left[i] for i in free_left),
        *(of_right[j] for j in free_right),
    )
    return [Block(value, parts, tuple(eqn.outvars[0].aval.shape))]


def _broadcast(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """New dimensions are held once."""
    block, shape = ins[0], tuple(eqn.params["shape"])
    where = tuple(eqn.params["broadcast_dimensions"])
    sizes = [0 if size == 0 else 1 for size in shape]
    parts: list[Part] = [()] * len(shape)
    for axis, to in enumerate(where):
        if block.shape[axis] == shape[to]:
            sizes[to], parts[to] = block.value.shape[axis], block.parts[axis]
    value = lax.broadcast_in_dim(block.value, sizes, where)
    return [Block(value, tuple(parts), shape)]


def _transpose(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    block, order = ins[0], eqn.params["permutation"]
    value = lax.transpose(block.value, order)
    return [Block(value, tuple(block.parts[i] for i in order), tuple(eqn.outvars[0].aval.shape))]


def _squeeze(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    block, axes = ins[0], eqn.params["dimensions"]
    block = devices.whole(block, axes)
    kept = [i for i in range(len(block.shape)) if i not in axes]
    parts = tuple(block.parts[i] for i in kept)
    return [Block(lax.squeeze(block.value, axes), parts, tuple(eqn.outvars[0].aval.shape))]


def _slice(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    block, start, limit = ins[0], eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(start)
    spans = list(zip(start, limit, steps, strict=True))
    full = [span == (0, size, 1) for span, size in zip(spans, block.shape, strict=True)]
    block = devices.whole(block, [axis for axis, is_full in enumerate(full) if not is_full])
    spans = [
        (0, size, 1) if is_full else span
        for span, size, is_full in zip(spans, block.value.shape, full, strict=True)
    ]
    value = lax.slice(block.value, *zip(*spans, strict=True))
    return [Block(value, block.parts, tuple(eqn.outvars[0].aval.shape))]


def _dynamic_slice(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    block, *starts = ins
    sizes = eqn.params["slice_sizes"]
    cut = [axis for axis, size in enumerate(sizes) if size != block.shape[axis]]
    block = devices.whole(block, cut)
    sizes = [sizes[i] if i in cut else own for i, own in enumerate(block.value.shape)]
    names = varying(block.value)
    where = [as_varying(start.value, names) for start in starts]
    value = lax.dynamic_slice(block.value, where, sizes)
    return [Block(value, block.parts, tuple(eqn.outvars[0].aval.shape))]


def _dynamic_update_slice(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    block, update, *starts = ins
    cut = [i for i, size in enumerate(update.shape) if size != block.shape[i]]
    parts, values = _alike(devices, [block, update], cut)
    values = [*values, *(start.value for start in starts)]
    return [Block(x, parts, block.shape) for x in bound(eqn, values)]


def _pad(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    block, fill = ins
    config = eqn.params["padding_config"]
    block = devices.whole(block, [i for i, sides in enumerate(config) if any(sides)])
    (value,) = bound(eqn, [block.value, fill.value])
    return [Block(value, block.parts, tuple(eqn.outvars[0].aval.shape))]


def _matrices(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """Each device decomposes the whole matrices of its own part of the batch."""
    rank = max(len(block.shape) for block in ins) - 2
    batches = [Block(b.value, b.parts[:rank], b.shape[:rank]) for b in ins]
    batch = devices.common(batches)
    values = []
    for block in ins:
        block = devices.whole(block, range(rank, len(block.shape)))
        values.append(devices.laid(block, (*batch, *block.parts[rank:])).value)
    out = []
    for x, var in zip(bound(eqn, values), eqn.outvars, strict=True):
        shape = tuple(var.aval.shape)
        out.append(Block(x, (*batch, *((),) * (len(shape) - rank)), shape))
    return out


def _reshape(devices: Devices, eqn: Any, ins: list[Block]) -> list[Block]:
    """Splits survive in the first of dimensions that become others."""
    block, new = ins[0], tuple(eqn.params["new_sizes"])
    if 0 in new or eqn.params.get("dimensions") is not None:
        return on_whole(devices, eqn, ins)
    sizes, parts = [1] * len(new), [()] * len(new)  # type: list[int], list[Part]
    for group, others in _factors(block.shape, new):
        split = [i for i in group if block.parts[i]]
        if not split and all(block.is_once(i) for i in group):
            continue  # all equal: held once in the new dimensions, too
        devices_of = devices.count(block.parts[group[0]]) if group else 1
        stays = split == group[:1] and others and new[others[0]] % devices_of == 0
        block = devices.whole(block, [i for i in group if i not in split or not stays])
        for j in others:
            sizes[j] = new[j]
        if split and stays:
            parts[others[0]] = block.parts[group[0]]
            sizes[others[0]] //= devices_of
    return [Block(lax.reshape(block.value, sizes), tuple(parts), new)]


def _factors(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Groups of old and of new dimensions with equal products, without those of size 1."""
    out, i, j = [], 0, 0
    olds = [axis for axis, size in enumerate(old) if size != 1]
    news = [axis for axis, size in enumerate(new) if size != 1]
    while i < len(olds):
        group, others = [olds[i]], [news[j]]
        i, j = i + 1, j + 1
        while (a := math.prod(old[x] for x in group)) != (b := math.prod(new[x] for x in others)):
            if a < b:
                group.append(olds[i])
                i += 1
            else:
                others.append(news[j])
                j += 1
        out.append((group, others))
    return out


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_CUMULATIVE, _along("axis")),
    **dict.fromkeys(("argmax", "argmin", "reduce_prod"), _along("axes")),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "optimization_barrier": _identity,
    "pad": _pad,
    "reshape": _reshape,
    "rev": _along("dimensions"),
    "slice": _slice,
    "sort": _along("dimension"),
    "split": _along("axis"),
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
