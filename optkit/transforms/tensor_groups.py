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
    results: int,
    kinds: Sequence[Hashable] | None = None,
) -> list[tuple[jax.Array, ...]]:
    """Applies a function to each leaf's tensors and factors.

    Tensors of one shape, with factors of one kind, are stacked by ``map_groups``, on a mesh moved
    to whole ones on single devices and back; vectors stay where they are.

    Args:
      function: of tensors ``(*batch, *axes)`` and factors ``(*batch, ...)``; returns a tuple of
        arrays that have the batch axes.
      views: how each leaf is read.
      tensors: lists of a tensor a leaf, as many as the function takes.
      factors: the factors of each leaf.
      group_bytes: bytes of one stack.
      idle: what it returns for an empty tensor and its factors.
      results: how many of them, the first ones, have the tensors' own axes.
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
        done = run_tensors(
            _of(function, kind), axes, columns, rows, results=results, group_bytes=group_bytes
        )
        for index, own in zip(members, done, strict=True):
            out[index] = own
    return out


def _of(function: Any, kind: Hashable | None) -> Function:
    return function if kind is None else function(kind)


def run_tensors(
    function: Function,
    axes: tuple[int, ...],
    tensors: Sequence[Sequence[jax.Array]],
    factors: Sequence[Sequence[jax.Array]],
    *,
    results: int,
    group_bytes: int | None,
    move: bool = True,
) -> list[tuple[jax.Array, ...]]:
    """Applies a function to tensors of one shape, ``axes`` behind any batch.

    Args:
      function: as that of ``map_tensors``.
      axes: their sizes; tensors of other than two travel as matrices.
      tensors: lists of a tensor each, as many as the function takes.
      factors: lists of a factor each.
      results: how many of the function's results, the first ones, have these axes.
      group_bytes: bytes of one stack.
      move: see ``optkit.tree.map_groups``.

    Returns:
      What the function returns for each.
    """
    rank, many = len(axes), len(tensors)

    def as_matrix(x: jax.Array) -> jax.Array:
        return x if rank == 2 else x.reshape(*x.shape[: x.ndim - rank], -1, axes[-1])

    def on_matrices(*args: jax.Array) -> tuple[jax.Array, ...]:
        given = [x.reshape(*x.shape[:-2], *axes) for x in args[:many]]
        done = function(*given, *args[many:])
        return (*map(as_matrix, done[:results]), *done[results:])

    first, *more = [[as_matrix(x) for x in own] for own in tensors]
    work = MatrixFunction(on_matrices, spread=True)
    done = map_groups(work, first, *more, *factors, group_bytes=group_bytes, move=move)
    return [
        (*(y.reshape(x.shape) for y in own[:results]), *own[results:])
        for x, own in zip(tensors[0], done, strict=True)
    ]


def multiple(leaf: Any, batch: tuple[int, ...], value: jax.Array) -> jax.Array:
    """Returns a first factor for each tensor of a leaf's batch, lying as factors do."""
    zeros = factor_beside(leaf, (*batch, *value.shape), value.dtype)
    return zeros + value.reshape((1,) * len(batch) + value.shape)
