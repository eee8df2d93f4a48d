"""Functions of tensors and of their factors: those of one shape worked on together."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit.tree import AxisLayout, AxisView, map_groups
from optkit.tree.sharding import place_statistic, zeros_beside

Factors = tuple[Any, ...]


def map_tensors(
    function: Callable[..., tuple[jax.Array, ...]],
    layout: AxisLayout,
    tensors: Sequence[Sequence[jax.Array]],
    factors: Sequence[Factors],
    group_bytes: int | None,
    *,
    idle: Callable[[jax.Array, Factors], tuple[jax.Array, ...]],
) -> list[tuple[jax.Array, ...]]:
    """Applies a function to each leaf's tensors and factors.

    Tensors of one shape, with factors of one kind, are stacked by ``map_groups``, on a mesh moved
    to whole ones on single devices and back; vectors stay where they are.

    Args:
      function: of tensors ``(*batch, *axes)`` and factors ``(*batch, ...)``; returns a tuple of
        arrays that have the batch axes, first of them those with the tensor's own axes.
      layout: how the leaves are read.
      tensors: lists of a tensor a leaf, as many as the function takes.
      factors: the factors of each leaf.
      group_bytes: bytes of one stack.
      idle: what it returns for an empty tensor and its factors.

    Returns:
      What the function returns for each leaf.
    """
    out: list[Any] = [None] * len(layout.views)
    groups: dict[Any, list[int]] = {}
    for index, view in enumerate(layout.views):
        x, own = tensors[0][index], factors[index]
        if x.size == 0:
            out[index] = idle(x, own)
        elif len(view.axes) < 2:
            out[index] = function(*(t[index] for t in tensors), *own)
        else:
            batch = len(view.batch)
            kinds = tuple((q.shape[batch:], q.dtype) for q in own)
            groups.setdefault((view.axes, kinds, x.dtype), []).append(index)
    for (axes, _, _), members in groups.items():
        _run(function, axes, members, tensors, factors, group_bytes, out)
    return out


def _run(
    function: Callable[..., tuple[jax.Array, ...]],
    axes: tuple[int, ...],
    members: Sequence[int],
    tensors: Sequence[Sequence[jax.Array]],
    factors: Sequence[Factors],
    group_bytes: int | None,
    out: list[Any],
) -> None:
    """One group; tensors of more than two axes travel as matrices."""
    rank, many = len(axes), len(tensors)

    def as_matrix(x: jax.Array) -> jax.Array:
        return x if rank == 2 else x.reshape(*x.shape[: x.ndim - rank], -1, axes[-1])

    def on_matrices(*args: jax.Array) -> tuple[jax.Array, ...]:
        lead = args[0].shape[:-2]
        given = [x if rank == 2 else x.reshape(*lead, *axes) for x in args[:many]]
        done = function(*given, *args[many:])
        return tuple(as_matrix(y) if y.shape == (*lead, *axes) else y for y in done)

    first, *more = [[as_matrix(t[i]) for i in members] for t in tensors]
    columns = [list(column) for column in zip(*(factors[i] for i in members), strict=True)]
    done = map_groups(on_matrices, first, *more, *columns, group_bytes=group_bytes)
    for index, results in zip(members, done, strict=True):
        x = tensors[0][index]
        flat = as_matrix(x).shape
        out[index] = tuple(y.reshape(x.shape) if y.shape == flat else y for y in results)


def beside(leaf: Any, view: AxisView, value: jax.Array) -> jax.Array:
    """Returns a first factor for each tensor of a leaf's batch, placed as the leaf's state is."""
    shape = (*view.batch, *value.shape)
    if shape == view.shape and len(view.axes) < 2:
        return jnp.zeros_like(leaf, dtype=value.dtype) + value
    return zeros_beside(leaf, shape, value.dtype) + value


def kept(factor: jax.Array, tensor: jax.Array, view: AxisView) -> jax.Array:
    """Places a new factor as it lay before."""
    if len(view.axes) < 2:
        return factor
    return place_statistic(factor, tensor) if len(view.axes) == 2 else factor
