"""The rule of lookups: rows of a table, or whole matrices out of a stack of them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit import _jaxprs
from optkit.evolution.interpreter.carried import Carried, Record
from optkit.evolution.interpreter.engine import rule


@rule("gather")
def _gather(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    w, indices = values
    numbers = eqn.params["dimension_numbers"]
    indexed, offsets = numbers.start_index_map, numbers.offset_dims
    if not isinstance(w, Carried) or isinstance(indices, Carried):
        return None
    rest = [axis for axis in range(w.ndim) if axis not in indexed]
    whole = all(eqn.params["slice_sizes"][axis] == w.value.shape[axis] for axis in rest)
    simple = sorted(numbers.collapsed_slice_dims) == sorted(indexed)
    if not whole or not simple or numbers.operand_batching_dims:
        return None
    w.note(record, "looked up", eqn, contracted=indexed, free=rest)
    # Labels of the result's axes: those of the parameter, -1 - n for the n-th axis of indices.
    count = jnp.ndim(indices) - 1 + len(offsets)
    names, places = iter(rest), iter(range(count))
    out = [next(names) if axis in offsets else -1 - next(places) for axis in range(count)]
    (base,) = _jaxprs.bind(eqn, [w.value.base, indices])
    a, a_names = _picked(eqn, w.value.a, w.a_axes, indices)
    b, b_names = _picked(eqn, w.value.b, w.b_axes, indices)
    if len(rest) > 1 and not {*indexed} & {*w.value.left, *w.value.right}:
        return [_stack(w, base, (a, a_names), (b, b_names), out)]
    if a.size > b.size:
        a, a_names, b, b_names = b, b_names, a, a_names
    own = jnp.einsum(
        *(w.scaled(a), _numbers(a_names, w.ndim, rank=True)),
        *(b, _numbers(b_names, w.ndim, rank=True)),
        _numbers(out, w.ndim),
        preferred_element_type=base.dtype,
    )
    return [w.finish(base + own)]


def _numbers(names: Sequence[int], ndim: int, *, rank: bool = False) -> list[int]:
    """Returns labels as numbers from 0, followed by that of the ranks."""
    return [name if name >= 0 else ndim - name for name in names] + [ndim] * rank


def _picked(
    eqn: Any, factor: jax.Array, axes: Sequence[int], indices: jax.Array
) -> tuple[jax.Array, list[int]]:
    """Returns what an index picks of a factor, with the labels of its axes but that of ranks."""
    numbers = eqn.params["dimension_numbers"]
    columns = [n for n, axis in enumerate(numbers.start_index_map) if axis in axes]
    if not columns:
        return factor, list(axes)
    mine = [axes.index(numbers.start_index_map[n]) for n in columns]
    rest = [axis for axis in axes if axis not in numbers.start_index_map]
    lead = indices.ndim - 1
    picked = jax.lax.gather(
        factor,
        indices[..., jnp.array(columns)] if len(columns) < indices.shape[-1] else indices,
        jax.lax.GatherDimensionNumbers(
            offset_dims=tuple(range(lead, lead + len(rest) + 1)),
            collapsed_slice_dims=tuple(sorted(mine)),
            start_index_map=tuple(mine),
        ),
        slice_sizes=tuple(1 if n in mine else size for n, size in enumerate(factor.shape)),
        mode=eqn.params["mode"],
        indices_are_sorted=eqn.params["indices_are_sorted"],
        unique_indices=eqn.params["unique_indices"],
        fill_value=0,  # what is out of bounds is filled in the shared part
    )
    return picked, [*(-1 - n for n in range(lead)), *rest]


def _stack(
    w: Carried,
    base: jax.Array,
    a: tuple[jax.Array, list[int]],
    b: tuple[jax.Array, list[int]],
    out: Sequence[int],
) -> Carried:
    """Returns the matrices that were looked up in a stack, still apart from what is shared."""

    def ordered(factor: jax.Array, names: list[int]) -> jax.Array:
        return factor.transpose(*(names.index(n) for n in out if n in names), len(names))

    left = [axis for axis, name in enumerate(out) if name in w.value.left]
    right = [axis for axis, name in enumerate(out) if name in w.value.right]
    origin = [w.origin[name] if name >= 0 else () for name in out]
    return w.rebuilt(base, ordered(*a), ordered(*b), left, right, origin)
