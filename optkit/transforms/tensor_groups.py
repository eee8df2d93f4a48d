"""Functions of tensors and of their factors: those of one shape worked on together."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax

from optkit.tree import AxisView, MatrixFunction, map_groups
from optkit.tree.sharding import factor_beside

Factors = tuple[jax.Array, ...]
Function = Callable[..., tuple[jax.Array, ...]]


def map_tensors(
    function: Callable[..., Any],
    views: Sequence[AxisView],
    tensors: Sequence[Sequence[jax.Array]],
    factors: Sequence[Factors],
    group_bytes: int | None,
    *,
    idle: Callable[[jax.Array, Factors], tuple[jax.Array, ...]],
    kinds: Sequence[Hashable] | None = None,
) -> list[tuple[jax.Array, ...]]:
    """Applies a function to each leaf's tensors and factors.

    Tensors of one shape, with factors of one kind, are stacked by ``map_groups``, on a mesh moved
    to whole ones on single devices and back; vectors stay where they are.

    Args:
      function: of tensors ``(*batch, *axes)`` and factors ``(*batch, ...)``; returns a tuple of
        arrays that have the batch axes, first of them those with the tensor's own axes.
      views: how each leaf is read.
      tensors: lists of a tensor a leaf, as many as the function takes.
      factors: the factors of each leaf.
      group_bytes: bytes of one stack.
      idle: what it returns for an empty tensor and its factors.
      kinds: of each leaf, what ``function`` returns the function for; None where it is one for all.

    Returns:
      What the function returns for each leaf.
    """
    out: list[Any] = [None] * len(views)
    groups: dict[Any, list[int]] = {}
    for index, view in enumerate(views):
        x, own = tensors[0][index], factors[index]
        kind = None if kinds is None else kinds[index]
        if x.size == 0:
            out[index] = idle(x, own)
        elif len(view.axes) < 2:
            out[index] = _of(function, kind)(*(t[index] for t in tensors), *own)
        else:
            batch = len(view.batch)
            shapes = tuple((q.shape[batch:], q.dtype) for q in own)
            groups.setdefault((view.axes, shapes, x.dtype, kind), []).append(index)
    for (axes, _, _, kind), members in groups.items():
        columns = [[t[i] for i in members] for t in tensors]
        rows = [list(column) for column in zip(*(factors[i] for i in members), strict=True)]
        done = _run(_of(function, kind), axes, columns, rows, group_bytes)
        for index, results in zip(members, done, strict=True):
            out[index] = results
    return out


def _of(function: Any, kind: Hashable | None) -> Function:
    return function if kind is None else function(kind)


def _run(
    function: Function,
    axes: tuple[int, ...],
    tensors: list[list[jax.Array]],
    factors: list[list[jax.Array]],
    group_bytes: int | None,
) -> list[tuple[jax.Array, ...]]:
    """One group; tensors of more than two axes travel as matrices."""
    rank, many = len(axes), len(tensors)
    if rank == 2:
        work = MatrixFunction(function, spread=True)
        return map_groups(work, tensors[0], *tensors[1:], *factors, group_bytes=group_bytes)

    def as_matrix(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[: x.ndim - rank], -1, axes[-1])

    def on_matrices(*args: jax.Array) -> tuple[jax.Array, ...]:
        lead = args[0].shape[:-2]
        given = [x.reshape(*lead, *axes) for x in args[:many]]
        done = function(*given, *args[many:])
        return tuple(as_matrix(y) if y.shape == (*lead, *axes) else y for y in done)

    first, *more = [[as_matrix(x) for x in own] for own in tensors]
    work = MatrixFunction(on_matrices, spread=True)
    done = map_groups(work, first, *more, *factors, group_bytes=group_bytes)
    return [
        tuple(y.reshape(x.shape) if y.shape == flat.shape else y for y in results)
        for x, flat, results in zip(tensors[0], first, done, strict=True)
    ]


def multiple(leaf: Any, batch: tuple[int, ...], value: jax.Array) -> jax.Array:
    """Returns a first factor for each tensor of a leaf's batch, lying as factors do."""
    zeros = factor_beside(leaf, (*batch, *value.shape), value.dtype)
    return zeros + value.reshape((1,) * len(batch) + value.shape)
