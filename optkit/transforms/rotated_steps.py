"""One step of eigenbases: how leaves are read, their statistics, first bases, and refreshes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.linalg.eigenbasis import Refresh, eigenbasis
from optkit.linalg.kronecker import scaled_within, tensor_gram
from optkit.linalg.norms import LARGEST
from optkit.transforms.base import branch
from optkit.transforms.rotated_units import Factors, Moments, Plan, refresh_units, sizes_of
from optkit.transforms.tensor_groups import map_tensors
from optkit.tree import AxisLayout, Dims, MatrixFunction, PyTree, RuleLike, map_groups, merge_dims
from optkit.tree.sharding import place_factor


class Options(NamedTuple):
    """What was asked for, as far as leaves are concerned."""

    max_dim: int
    vectors: bool
    merge: bool
    whole: bool
    dims: Dims
    roles: tuple[RuleLike, ...]
    precision: Any
    group_bytes: int | None

    def read(self, tree: PyTree) -> tuple[AxisLayout, Plan]:
        """How a tree is read, and which axes have factors."""
        merge = functools.partial(merge_dims, limit=self.max_dim, order="first")
        layout = AxisLayout(
            tree, self.dims, self.roles, whole=self.whole, merge=merge if self.merge else None
        )
        axes = []
        for view in layout.views:
            sizes, rank = sizes_of(view), len(view.shape)
            is_vector = rank < 2 or view.stands_alone
            serves = rank > 0 and (self.vectors or not is_vector)
            axes.append(
                tuple(
                    place - len(sizes)
                    for place, size in enumerate(sizes)
                    if serves and size <= self.max_dim
                )
            )
        return layout, Plan(layout.views, tuple(axes), self.precision, self.group_bytes)


def packed(layout: AxisLayout, plan: Plan, values: Factors) -> tuple[PyTree, ...]:
    """The factors of each leaf as one tree an axis, in the order of the leaf's own axes."""
    placed: list[list[Any]] = []
    for view, axes, own in zip(plan.views, plan.axes, values, strict=True):
        row: list[Any] = [None] * len(sizes_of(view))
        for axis, value in zip(axes, own, strict=True):
            row[axis] = value
        placed.append(row)
    return layout.pack(placed)


def unpacked(layout: AxisLayout, plan: Plan, trees: tuple[PyTree, ...]) -> Factors:
    """Undoes ``packed``."""
    rows = layout.unpack(trees, [len(sizes_of(view)) for view in plan.views])
    return [tuple(row[a] for a in axes) for row, axes in zip(rows, plan.axes, strict=True)]


def _grown(kind: tuple[int, tuple[int, ...]], *, decay: Any, precision: Any) -> Any:
    rank, axes = kind

    def grow(x: jax.Array, *held: jax.Array) -> tuple[jax.Array, ...]:
        x = scaled_within(x, LARGEST, rank)
        return tuple(
            decay * old + (1.0 - decay) * tensor_gram(x, axis, rank, precision=precision)
            for axis, old in zip(axes, held, strict=True)
        )

    return grow


def grown_statistics(plan: Plan, tensors: list[jax.Array], old: Factors, decay: Any) -> Factors:
    """The averages of Gram matrices after a gradient."""
    of = plan.chosen
    done = map_tensors(
        functools.partial(_grown, decay=decay, precision=plan.precision),
        [plan.views[i] for i in of],
        [[tensors[i] for i in of]],
        [old[i] for i in of],
        plan.group_bytes,
        idle=lambda _, own: own,
        results=0,
        kinds=[(len(sizes_of(plan.views[i])), plan.axes[i]) for i in of],
    )
    out = list(old)
    for i, own in zip(of, done, strict=True):
        out[i] = tuple(
            place_factor(new.astype(was.dtype), tensors[i])
            for new, was in zip(own, old[i], strict=True)
        )
    return out


def first_bases(
    plan: Plan, statistics: Factors, old: Factors, tensors: list[jax.Array]
) -> tuple[Factors, jax.Array]:
    """Eigenvectors of the first statistics, and how many of them were not finite."""
    units = plan.units
    seen = [statistics[i][j] for i, j in units]
    work = MatrixFunction(eigenbasis, spread=True)
    done = map_groups(work, seen, group_bytes=plan.group_bytes)
    failed = jnp.zeros((), jnp.int32)
    out = [list(own) for own in old]
    for (i, j), (q, good) in zip(units, done, strict=True):
        out[i][j] = place_factor(q.astype(old[i][j].dtype), tensors[i])
        failed += jnp.sum(~good).astype(jnp.int32)
    return [tuple(own) for own in out], failed


class Following(NamedTuple):
    """How bases are followed."""

    every: int
    method: Refresh
    stagger: bool

    def run(
        self,
        plan: Plan,
        moments: Moments,
        n: jax.Array,
        tensors: list[jax.Array],
        statistics: Factors,
        basis: Factors,
        inner: PyTree,
    ) -> tuple[Factors, PyTree, jax.Array]:
        """The bases and the inner state for the next update, and how many were not finite."""
        leaves, structure = jax.tree.flatten(inner)
        out = [list(own) for own in basis]
        failures = jnp.zeros((), jnp.int32)
        turns = plan.turns(self.every) if self.stagger else [plan.units]
        for turn, units in enumerate(turns):
            if not units:
                continue
            due = (n > 0) & ((n + turn) % self.every == 0)
            touched = {i for i, _ in units}
            held = {k: leaves[k] for k, (i, _) in moments.moves.items() if i in touched}
            own = [out[i][j] for i, j in units]
            seen = [statistics[i][j] for i, j in units]

            def work(
                seen: Any, own: Any, held: Any, units: Any = units
            ) -> tuple[list[jax.Array], dict[int, jax.Array], jax.Array]:
                new, moved, failed = refresh_units(
                    plan, units, self.method, moments, seen, own, held
                )
                placed = [
                    place_factor(q.astype(was.dtype), tensors[i])
                    for q, was, (i, _) in zip(new, own, units, strict=True)
                ]
                return placed, moved, failed

            new, moved, failed = branch(
                due,
                work,
                lambda seen, own, held: (own, held, jnp.zeros((), jnp.int32)),
                seen,
                own,
                held,
            )
            failures += failed
            for (i, j), q in zip(units, new, strict=True):
                out[i][j] = q
            for k, x in moved.items():
                leaves[k] = x
        return [tuple(own) for own in out], jax.tree.unflatten(structure, leaves), failures
