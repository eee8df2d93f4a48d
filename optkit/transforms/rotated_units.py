"""What a refresh of eigenbases touches: factors by their turn, and moments that go with them."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from optkit.linalg.eigenbasis import Refresh, refreshed_eigenbasis
from optkit.linalg.kronecker import apply_along
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.low_rank.inner import LINEAR_NAMES, SQUARE_NAMES
from optkit.transforms.tensor_groups import map_tensors
from optkit.tree import AxisView, MatrixFunction, PyTree, map_groups, match_state, upcast
from optkit.tree.sharding import place_factor, place_like

Move = Literal["rotate", "permute", "keep"]
Factors = list[tuple[jax.Array, ...]]  # of each leaf, one array an axis that has a factor
Axes = Literal["matrix", "all"]
FACTOR_ROLES = ("matrix", "stacked", "expert", "conv", "embedding", "head")
# Entries of a turned gradient below so many roundings of its largest one are no direction of it.
_ROUNDING = 8.0
Unit = tuple[int, int]  # a leaf, and which of its factors


def sizes_of(view: AxisView) -> tuple[int, ...]:
    """Axes of a leaf that may have a factor; of a vector, or a batch of them, its last one."""
    return view.axes or view.shape[-1:] or (1,)


@dataclass(frozen=True)
class Plan:
    """The leaves of a tree, and which of their axes have factors.

    Attributes:
      views: how the leaves are read.
      axes: of each leaf, the axes with a factor, counted from the end.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack.
    """

    views: tuple[AxisView, ...]
    axes: tuple[tuple[int, ...], ...]
    precision: Any
    group_bytes: int | None

    @property
    def chosen(self) -> list[int]:
        """Leaves with a factor."""
        return [i for i, own in enumerate(self.axes) if own]

    @property
    def units(self) -> list[Unit]:
        """All factors."""
        return [(i, j) for i in self.chosen for j in range(len(self.axes[i]))]

    def size(self, unit: Unit) -> int:
        """Side of a factor."""
        leaf, place = unit
        return sizes_of(self.views[leaf])[self.axes[leaf][place]]

    def turns(self, count: int) -> list[list[Unit]]:
        """The factors by turn, so that turns cost about the same: the largest first."""
        costs = [0.0] * max(1, count)
        out: list[list[Unit]] = [[] for _ in costs]
        for unit in sorted(self.units, key=self.size, reverse=True):
            turn = min(range(len(costs)), key=costs.__getitem__)
            out[turn].append(unit)
            costs[turn] += float(self.size(unit)) ** 3 * max(
                1, math.prod(self.views[unit[0]].batch)
            )
        return out

    def over(
        self, function: Any, leaves: Sequence[int], tensors: Any, factors: Any, kinds: Any
    ) -> list[tuple[jax.Array, ...]]:
        """Maps ``function(kind)`` over some leaves; empty tensors keep what they have."""
        return map_tensors(
            function,
            [self.views[i] for i in leaves],
            [tensors],
            factors,
            self.group_bytes,
            idle=lambda x, _: (x,),
            results=1,
            kinds=kinds,
        )

    def rotated(
        self,
        tensors: list[jax.Array],
        basis: Factors,
        *,
        back: bool = False,
        clean: bool = False,
    ) -> list[jax.Array]:
        """Each tensor in the coordinates of its bases, or back in its own.

        ``clean`` makes zeros of entries that are no more than the rounding of this.
        """
        make = functools.partial(_rotation, back=back, clean=clean, precision=self.precision)
        of = self.chosen
        kinds = [(len(sizes_of(self.views[i])), self.axes[i]) for i in of]
        done = self.over(make, of, [tensors[i] for i in of], [basis[i] for i in of], kinds)
        out = list(tensors)
        for index, (y,) in zip(of, done, strict=True):
            out[index] = y
        return out


def _rotation(kind: tuple[int, tuple[int, ...]], *, back: bool, clean: bool, precision: Any) -> Any:
    rank, axes = kind

    def rotate(x: jax.Array, *basis: jax.Array) -> tuple[jax.Array]:
        for axis, q in zip(axes, basis, strict=True):
            x = apply_along(x, q if back else q.mT, axis, rank, precision=precision)
        if clean:
            inside = tuple(range(x.ndim - rank, x.ndim))
            largest = jnp.max(jnp.abs(x), axis=inside, keepdims=True)
            # (NaN and infinity stay visible.)
            x = jnp.where(jnp.abs(x) < _ROUNDING * jnp.finfo(x.dtype).eps * largest, 0.0, x)
        return (x,)

    return rotate


def _carried(kind: tuple[int, tuple[int, ...], Move], *, precision: Any) -> Any:
    rank, axes, move = kind

    def carry(x: jax.Array, *parts: jax.Array) -> tuple[jax.Array]:
        for axis, part in zip(axes, parts, strict=True):
            if move == "rotate":
                x = apply_along(x, part, axis, rank, precision=precision)
            else:
                shape = [1] * rank
                shape[axis] = part.shape[-1]
                index = part.reshape(*part.shape[:-1], *shape)
                x = jnp.take_along_axis(x, index, axis=axis)
        return (x,)

    return carry


class Moments:
    """The arrays of an inner state that go with a basis, and how.

    Args:
      state: the inner state, or its shapes.
      like: the tree that it was initialised with.
      plan: the leaves.
      given: ``transport`` of the user.
    """

    def __init__(
        self, state: PyTree, like: PyTree, plan: Plan, given: Mapping[str, Move] | None
    ) -> None:
        """Finds them; raises for what is not known to go along."""
        named = {view.path: index for index, view in enumerate(plan.views)}
        self.moves: dict[int, tuple[int, Move]] = {}
        for number, match in enumerate(match_state(state, like)):
            if match.param_path is None or not plan.axes[named[match.param_path]]:
                continue
            move = _move_of(match, given)
            if move != "keep":
                self.moves[number] = named[match.param_path], move


def _move_of(match: Any, given: Mapping[str, Move] | None) -> Move:
    names = [getattr(entry, "name", "") for entry in match.key_path]
    known: dict[str, Move] = {name: "rotate" for name in LINEAR_NAMES}
    known |= {name: "permute" for name in SQUARE_NAMES}
    known |= given or {}
    kind = next((known[name] for name in reversed(names) if name in known), None)
    if kind is None:
        raise ValueError(
            f"in_rotated_basis does not know how {match.owner!r} of leaf {match.param_path!r} goes "
            "from one basis to the next; say it by the name of the state's field, such as "
            "transport={'momentum': 'rotate', 'nu': 'permute', 'history': 'keep'}"
        )
    fits = tuple(match.leaf.shape) == tuple(match.param.shape)
    if kind != "keep" and (match.is_stored or not fits):
        raise ValueError(
            f"in_rotated_basis cannot {kind} {match.owner!r} of leaf {match.param_path!r}, of "
            f"shape {tuple(match.leaf.shape)}: it is not stored entry by entry like the leaf; take "
            "an inner transformation whose moments are, such as optkit.scale_by_adam()"
        )
    return kind


def check_transport(transport: Mapping[str, Move] | None) -> None:
    """Raises ValueError for a word that is none."""
    for move in (transport or {}).values():
        check_choice("transport", move, get_args(Move))


def refresh_units(
    plan: Plan,
    units: Sequence[Unit],
    method: Refresh,
    moments: Moments,
    statistics: Sequence[jax.Array],
    basis: Sequence[jax.Array],
    held: Mapping[int, jax.Array],
) -> tuple[list[jax.Array], dict[int, jax.Array], jax.Array]:
    """Follows some bases one step further, and takes the moments along.

    Args:
      plan: the leaves.
      units: whose turn it is.
      method: how.
      moments: what goes along.
      statistics: of each unit.
      basis: of each unit.
      held: arrays of the inner state that belong to the units' leaves, by number.

    Returns:
      The new bases, the new arrays, and how many bases were not finite and stayed.
    """
    new, turns, orders = [], [], []
    failed = jnp.zeros((), jnp.int32)

    def step(a: jax.Array, q: jax.Array) -> tuple[jax.Array, ...]:
        fresh, order, good = refreshed_eigenbasis(a, q, method)
        return fresh, jnp.matmul(fresh.mT, q, precision=plan.precision), order, good

    work = MatrixFunction(step, spread=True)
    done = map_groups(work, list(statistics), list(basis), group_bytes=plan.group_bytes)
    for was, (q, turn, order, good) in zip(basis, done, strict=True):
        new.append(q)
        # Or each is moved by itself from where the work was done.
        turns.append(place_factor(turn, was))
        orders.append(place_factor(order, was))
        failed += jnp.sum(~good).astype(jnp.int32)
    out = dict(held)
    for move, parts in (("rotate", turns), ("permute", orders)):
        numbers = [number for number in held if moments.moves[number][1] == move]
        if not numbers:
            continue
        leaves = [moments.moves[number][0] for number in numbers]
        own = {i: [k for k, unit in enumerate(units) if unit[0] == i] for i in leaves}
        kinds = [
            (len(sizes_of(plan.views[i])), tuple(plan.axes[i][units[k][1]] for k in own[i]), move)
            for i in leaves
        ]
        split = [upcast(plan.views[i].split(held[n])) for i, n in zip(leaves, numbers, strict=True)]
        factors = [tuple(parts[k] for k in own[i]) for i in leaves]
        make = functools.partial(_carried, precision=plan.precision)
        carried = plan.over(make, leaves, split, factors, kinds)
        for number, i, (x,) in zip(numbers, leaves, carried, strict=True):
            was = held[number]
            out[number] = place_like(plan.views[i].merge(x).astype(was.dtype), was)
    return new, out, failed
