"""Rules of what moves, cuts or renames axes: the factors follow the parameter."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from optkit import _jaxprs
from optkit.evolution.interpreter.carried import Carried, Record
from optkit.evolution.interpreter.engine import rule

Each = Callable[[jax.Array, list[int]], jax.Array]


def _same_axes(x: Carried, base: jax.Array, each: Each) -> Carried:
    """Returns a parameter whose factors are made by ``each(factor, its axes)``; axes stay."""
    v = x.value
    return x.rebuilt(base, each(v.a, x.a_axes), each(v.b, x.b_axes), v.left, v.right, x.origin)


@rule("transpose")
def _transpose(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    (x,) = values
    order = eqn.params["permutation"]

    def moved(factor: jax.Array, axes: list[int]) -> jax.Array:
        return factor.transpose(*(axes.index(old) for old in order if old in axes), len(axes))

    v = x.value
    left = [new for new, old in enumerate(order) if old in v.left]
    right = [new for new, old in enumerate(order) if old in v.right]
    origin = [x.origin[old] for old in order]
    a, b = moved(v.a, x.a_axes), moved(v.b, x.b_axes)
    return [x.rebuilt(v.base.transpose(order), a, b, left, right, origin)]


@rule("reshape", "squeeze", "expand_dims")
def _reshape(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    if eqn.params.get("dimensions") is not None and eqn.primitive.name == "reshape":
        return None
    shape = tuple(eqn.outvars[0].aval.shape)
    out = reshaped(values[0], shape) if len(values) == 1 else None
    return None if out is None else [out]


def reshaped(x: Carried, shape: tuple[int, ...]) -> Carried | None:
    """Returns a parameter in another shape, or None if axes of both factors would be mixed."""
    pairs = _groups(x.value.shape, shape)
    if pairs is None:
        return None
    v = x.value
    # A new axis of size 1 may be on either side: on the left.
    kinds = ["left"] * len(shape)
    origin: list[tuple[int, ...]] = [()] * len(shape)
    for old, new in pairs:
        kind = {_kind(x, axis) for axis in old}
        if len(kind) > 1:
            return None
        for axis in new:
            kinds[axis] = next(iter(kind))
            origin[axis] = tuple(sorted(x.came_from(old)))
    left = [axis for axis, kind in enumerate(kinds) if kind == "left"]
    right = [axis for axis, kind in enumerate(kinds) if kind == "right"]

    def sizes(without: list[int]) -> list[int]:
        return [size for axis, size in enumerate(shape) if axis not in without]

    a = v.a.reshape(*sizes(right), v.a.shape[-1])
    b = v.b.reshape(*sizes(left), v.b.shape[-1])
    return x.rebuilt(v.base.reshape(shape), a, b, left, right, origin)


def _kind(x: Carried, axis: int) -> str:
    if axis in x.value.left:
        return "left"
    return "right" if axis in x.value.right else "batch"


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]] | None:
    """Returns which old axes become which new ones, smallest groups first to last; no ones."""
    if 0 in old or 0 in new:
        return None
    olds = [axis for axis, size in enumerate(old) if size > 1]
    news = [axis for axis, size in enumerate(new) if size > 1]
    pairs: list[tuple[list[int], list[int]]] = []
    while olds:
        here, there = [olds.pop(0)], [news.pop(0)]
        m, n = old[here[0]], new[there[0]]
        while m != n:
            if m < n:
                here.append(olds.pop(0))
                m *= old[here[-1]]
            else:
                there.append(news.pop(0))
                n *= new[there[-1]]
        pairs.append((here, there))
    return pairs


@rule("broadcast_in_dim")
def _broadcast(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    x, shape = values[0], eqn.params["shape"]
    if len(values) > 1:
        return None
    v, place = x.value, eqn.params["broadcast_dimensions"]
    added = [axis for axis in range(len(shape)) if axis not in place]

    def spread(factor: jax.Array, axes: list[int], extra: list[int]) -> jax.Array:
        kept = sorted([*(place[axis] for axis in axes), *extra])
        rank = factor.shape[-1]
        to = [*(kept.index(place[axis]) for axis in axes), len(kept)]
        return jax.lax.broadcast_in_dim(factor, (*(shape[axis] for axis in kept), rank), to)

    base = jax.lax.broadcast_in_dim(v.base, shape, place)
    origin: list[tuple[int, ...]] = [()] * len(shape)
    for old, new in enumerate(place):
        origin[new] = x.origin[old]
    left = sorted([*(place[axis] for axis in v.left), *added])
    right = [place[axis] for axis in v.right]
    a, b = spread(v.a, x.a_axes, added), spread(v.b, x.b_axes, [])
    return [x.rebuilt(base, a, b, left, right, origin)]


@rule("slice")
def _slice(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    x, params = values[0], eqn.params
    steps = params["strides"] or (1,) * x.ndim
    cuts = [*zip(params["start_indices"], params["limit_indices"], steps, strict=True)]

    def cut(factor: jax.Array, axes: list[int]) -> jax.Array:
        return factor[tuple(slice(*cuts[axis]) for axis in axes)]

    return [_picked(x, _same_axes(x, _jaxprs.bind(eqn, [x.value.base])[0], cut))]


def _picked(old: Carried, new: Carried) -> Carried:
    """Notes on a slice which axes it leaves one entry of."""
    sizes = zip(old.value.shape, new.value.shape, strict=True)
    ones = [axis for axis, (was, size) in enumerate(sizes) if size == 1 < was]
    return replace(new, indexed=new.indexed | old.came_from(ones))


@rule("split")
def _split(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    x, sizes, axis = values[0], eqn.params["sizes"], eqn.params["axis"]
    bases = _jaxprs.bind(eqn, [x.value.base])
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    outs = []
    for base, start, size in zip(bases, starts, sizes, strict=True):

        def cut(f: jax.Array, axes: list[int], start: int = start, size: int = size) -> jax.Array:
            if axis not in axes:
                return f
            return jax.lax.slice_in_dim(f, start, start + size, axis=axes.index(axis))

        outs.append(_same_axes(x, base, cut))
    return outs


@rule("dynamic_slice")
def _dynamic_slice(
    record: Record, eqn: Any, values: list[Any], live: list[bool]
) -> list[Any] | None:
    x, *starts = values
    if not isinstance(x, Carried) or any(isinstance(start, Carried) for start in starts):
        return None
    sizes = eqn.params["slice_sizes"]

    def cut(factor: jax.Array, axes: list[int]) -> jax.Array:
        rank = factor.shape[-1]
        begin = [starts[axis] for axis in axes]
        zero = [jnp.zeros((), begin[0].dtype)] if begin else []
        if not begin:
            return factor
        return jax.lax.dynamic_slice(factor, begin + zero, [*(sizes[axis] for axis in axes), rank])

    return [_picked(x, _same_axes(x, _jaxprs.bind(eqn, [x.value.base, *starts])[0], cut))]


@rule("reduce_sum")
def _sum(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    x, gone = values[0], eqn.params["axes"]
    v = x.value
    stacked = [axis for axis in gone if axis not in (*v.left, *v.right)]

    def summed(factor: jax.Array, axes: list[int]) -> jax.Array:
        # A sum of low-rank matrices has the ranks of all.
        own = [axes.index(axis) for axis in gone if axis in axes and axis not in stacked]
        more = [axes.index(axis) for axis in stacked]
        kept = [n for n in range(len(axes)) if n not in (*own, *more)]
        moved = factor.transpose(*own, *kept, *more, len(axes)).sum(range(len(own)))
        return moved.reshape(*moved.shape[: len(kept)], -1)

    place = {old: new for new, old in enumerate(a for a in range(x.ndim) if a not in gone)}
    left, right = ([place[axis] for axis in side if axis in place] for side in (v.left, v.right))
    a, b = summed(v.a, x.a_axes), summed(v.b, x.b_axes)
    origin = [x.origin[axis] for axis in place]
    return [x.rebuilt(_jaxprs.bind(eqn, [v.base])[0], a, b, left, right, origin)]


@rule("rev")
def _rev(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    x, flipped = values[0], eqn.params["dimensions"]

    def turn(factor: jax.Array, axes: list[int]) -> jax.Array:
        return jax.lax.rev(factor, [axes.index(axis) for axis in flipped if axis in axes])

    return [_same_axes(x, _jaxprs.bind(eqn, [x.value.base])[0], turn)]


@rule("pad")
def _pad(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    x, value = values
    if not isinstance(x, Carried) or x.gain is not None or isinstance(value, Carried):
        return None
    config = eqn.params["padding_config"]

    def padded(factor: jax.Array, axes: list[int]) -> jax.Array:
        zero = jnp.zeros((), factor.dtype)  # nothing is perturbed in the border
        return jax.lax.pad(factor, zero, [*(config[axis] for axis in axes), (0, 0, 0)])

    return [_same_axes(x, _jaxprs.bind(eqn, [x.value.base, value])[0], padded)]


@rule(
    *("copy", "copy_p", "stop_gradient", "device_put", "name", "sharding_constraint"),
    *("reshard", "mesh_cast", "layout_constraint", "reduce_precision"),
)
def _unchanged(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    (x,) = values
    (base,) = _jaxprs.bind(eqn, [x.value.base])
    return [replace(x, value=replace(x.value, base=base))]


@rule("optimization_barrier")
def _barrier(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    plain = [x.value.base if isinstance(x, Carried) else x for x in values]
    outs = _jaxprs.bind(eqn, plain)
    return [
        replace(x, value=replace(x.value, base=out)) if isinstance(x, Carried) else out
        for x, out in zip(values, outs, strict=True)
    ]


@rule("convert_element_type")
def _convert(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    x, dtype = values[0], eqn.params["new_dtype"]
    if not jnp.issubdtype(dtype, jnp.floating):
        return None
    return [_same_axes(x, x.value.base.astype(dtype), lambda factor, _: factor.astype(dtype))]


@rule("neg")
def _neg(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    return [values[0].times(-1.0)]


@rule("mul", "div")
def _scale(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    x, y = values
    if eqn.primitive.name == "mul" and isinstance(y, Carried):
        x, y = y, x
    if not isinstance(x, Carried) or isinstance(y, Carried) or jnp.ndim(y):
        return None
    return [x.times(y if eqn.primitive.name == "mul" else 1.0 / y)]
