"""Kronecker factors of a tree: a second moment an axis, their inverse roots, and when those change.

The state has a factor and a root for each axis of each group of blocks, under the path of the
parameter. On a mesh factors and roots lie spread over the devices (by layers where these fill it,
else by rows), and are moved to whole matrices where a method works on them.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from optkit.linalg import apply_along, inverse_root, tensor_gram
from optkit.linalg.kronecker import scaled_within
from optkit.linalg.norms import LARGEST, norm_over
from optkit.transforms.base import branch
from optkit.transforms.hyperparams import Scalar, debias
from optkit.transforms.tensor_groups import multiple, run_tensors
from optkit.tree import BlockLayout, MatrixFunction, PyTree, map_groups
from optkit.tree.dtypes import accumulator_dtype
from optkit.tree.sharding import (
    factor_spec,
    mesh_of,
    place,
    place_factor,
    spec_of,
)

Lists = list[list[Any]]
Blocks = Sequence[jax.Array]
Axes = tuple[int, ...]


class KroneckerState(NamedTuple):
    """Factors and their inverse roots: a tuple of trees like the parameters.

    The i-th tree has the i-th array of each leaf: those of its axes, for each shape of its blocks.
    """

    factors: tuple[PyTree, ...]  # float32 (*batch, [blocks,] n, n)
    roots: tuple[PyTree, ...]  # float32, the same shapes


class Kronecker:
    """Factors of the blocks of one tree.

    Attributes:
      layout: how the tree is read.
      axes: for each group of blocks, which of its axes have a factor, counted from the end.
    """

    def __init__(
        self,
        layout: BlockLayout,
        chosen: Callable[[int, tuple[int, ...]], tuple[int, ...]] | None = None,
        *,
        group_bytes: int | None = None,
    ) -> None:
        """Chooses axes: ``chosen(group, shape of a block)`` gives them; None for all of them."""
        self.layout, self.group_bytes = layout, group_bytes
        self.axes = [
            tuple(range(-len(sizes), 0)) if chosen is None else chosen(group, sizes)
            for group, (_, sizes) in enumerate(layout.blocks)
        ]
        self.orders = [len(sizes) for _, sizes in layout.blocks]

    def init(self, params: PyTree, diagonal: Scalar = 0.0, root: Scalar = 1.0) -> KroneckerState:
        """Factors that are a multiple of the identity, beside their parameters, and roots."""
        leaves = self.layout.leaf_of(params)

        def made(value: Scalar) -> tuple[PyTree, ...]:
            def eye(leaf: Any, n: int) -> jax.Array:
                return value * jnp.eye(n, dtype=accumulator_dtype(leaf))

            return self.layout.pack(
                [
                    [multiple(leaf, batch, eye(leaf, sizes[axis])) for axis in axes]
                    for leaf, (batch, sizes), axes in zip(
                        leaves, self.layout.blocks, self.axes, strict=True
                    )
                ]
            )

        return KroneckerState(made(diagonal), made(root))

    def lists(self, trees: tuple[PyTree, ...]) -> Lists:
        """One list of arrays a group of blocks."""
        return self.layout.unpack(trees, [len(axes) for axes in self.axes])

    def placed(self, lists: Lists, like: Lists) -> Lists:
        """Arrays that lie as factors do, on the mesh of others."""
        return [
            [place_factor(x, y) for x, y in zip(own, others, strict=True)]
            for own, others in zip(lists, like, strict=True)
        ]

    def pack(self, lists: Lists, like: Lists) -> tuple[PyTree, ...]:
        """Undoes ``lists``, and has every array lie as a factor does."""
        return self.layout.pack(self.placed(lists, like))

    def grams(self, grads: Blocks) -> Lists:
        """Second moments of blocks along each axis that has a factor."""

        def work(axes: Axes, order: int, g: jax.Array) -> tuple[jax.Array, ...]:
            bounded = scaled_within(g, LARGEST, order)
            return tuple(tensor_gram(bounded, axis, order) for axis in axes)

        return self._mapped(work, grads, None, [() for _ in self.axes], results=0)

    def applied(self, given: Blocks, roots: Lists) -> tuple[list[jax.Array], list[Any]]:
        """Blocks with the roots of their axes applied, and their norms; None of those without."""

        def work(axes: Axes, order: int, x: jax.Array, *own: jax.Array) -> tuple[jax.Array, ...]:
            for axis, root in zip(axes, own, strict=True):
                x = apply_along(x, root, axis, order)
            return x, _norm(x, order)

        done = self._mapped(work, given, roots, [(x, None) for x in given], results=1)
        out = [x for x, _ in done]
        if any(mesh_of(x) is not None for x in given):
            return out, self.norms(out)  # summed where the blocks lie, not sent one by one
        return out, [norm for _, norm in done]

    def norms(self, blocks: Blocks) -> list[Any]:
        """Norms of blocks ``(*batch, [blocks])``; None of those without factors."""

        def work(axes: Axes, order: int, x: jax.Array) -> tuple[jax.Array]:
            del axes
            return (_norm(x, order),)

        idle = [(None,) for _ in self.axes]
        return [x for (x,) in self._mapped(work, blocks, None, idle, results=0, move=False)]

    def _mapped(
        self,
        work: Callable[..., tuple[jax.Array, ...]],
        blocks: Blocks,
        others: Lists | None,
        idle: Sequence[Any],
        *,
        results: int,
        move: bool = True,
    ) -> list[Any]:
        """Works on blocks of one shape together; ``idle`` is the result where no axis is chosen."""
        out, kinds = list(idle), dict[Any, list[int]]()
        for group, ((_, sizes), axes) in enumerate(zip(self.layout.blocks, self.axes, strict=True)):
            if axes:
                kinds.setdefault((sizes, axes), []).append(group)
        for (sizes, axes), members in kinds.items():
            given = [blocks[i] for i in members]
            beside: Any = [] if others is None else zip(*(others[i] for i in members), strict=True)
            done = run_tensors(
                functools.partial(work, axes, len(sizes)),
                sizes,
                [given],
                [list(map(functools.partial(_beside, len(sizes)), given, own)) for own in beside],
                results=results,
                group_bytes=self.group_bytes,
                move=move,
            )
            for group, result in zip(members, done, strict=True):
                out[group] = result
        return out

    def refreshed(
        self, factors: Lists, roots: Lists, root_of: "RootOf", scale: Scalar
    ) -> tuple[Lists, jax.Array]:
        """Returns new roots of all factors divided by ``scale``, and how many failed."""
        new: Lists = [list(own) for own in roots]
        failures: Any = 0
        for power, places in self._by_power(root_of).items():
            work = MatrixFunction(root_of.function(power, scale), spread=True)
            old, now = ([lists[i][j] for i, j in places] for lists in (roots, factors))
            done = map_groups(work, now, old, group_bytes=self.group_bytes)
            for (i, j), (x, failed) in zip(places, done, strict=True):
                new[i][j] = x
                failures = failures + jnp.sum(failed)
        return new, jnp.asarray(failures, jnp.int32)

    def _by_power(self, root_of: "RootOf") -> dict[float, list[tuple[int, int]]]:
        out: dict[float, list[tuple[int, int]]] = {}
        for i, axes in enumerate(self.axes):
            for j in range(len(axes)):
                out.setdefault(root_of.power(len(axes)), []).append((i, j))
        return out

    def in_turn(
        self, factors: Lists, roots: Lists, root_of: "RootOf", scale: Scalar, turn: Any, every: int
    ) -> tuple[Lists, jax.Array]:
        """The same for one of ``every`` parts of the factors, of which it is the turn."""
        new: Lists = [list(own) for own in roots]
        failures: Any = 0
        for power, places in self._by_power(root_of).items():
            work = MatrixFunction(root_of.function(power, scale), spread=True)
            by_size: dict[int, list[tuple[int, int]]] = {}
            for i, j in places:
                by_size.setdefault(factors[i][j].shape[-1], []).append((i, j))
            for own in by_size.values():
                plan = _Turns([factors[i][j].shape[:-2] for i, j in own], every)
                now, old = (
                    plan.picked([lists[i][j] for i, j in own], turn) for lists in (factors, roots)
                )
                done = map_groups(work, now, old, group_bytes=self.group_bytes)
                fresh, failed = ([pair[k] for pair in done] for k in (0, 1))
                failures = failures + plan.count(failed, turn)
                given = [roots[i][j] for i, j in own]
                for (i, j), x in zip(own, plan.put(given, fresh, turn), strict=True):
                    new[i][j] = x
        return new, jnp.asarray(failures, jnp.int32)


def _norm(x: jax.Array, order: int) -> jax.Array:
    """Norms of tensors of a batch."""
    inside = tuple(range(x.ndim - order, x.ndim))
    return jnp.squeeze(norm_over(x, inside), inside)


def _beside(order: int, x: jax.Array, root: jax.Array) -> jax.Array:
    """A root where its blocks lie, if those are layers on devices of an Explicit mesh."""
    mesh, spec = mesh_of(x), spec_of(x)
    layers = () if spec is None else tuple(spec)[: x.ndim - order]
    return place(root, mesh, PartitionSpec(*layers)) if any(layers) else root


def new_factors(factors: Lists, grams: Lists, decay: Scalar) -> Lists:
    """Factors after a gradient: an average of second moments, or with a decay of 1 their sum."""
    fresh = weight_of(decay)
    return [
        [decay * old + fresh * new for old, new in zip(own, gram, strict=True)]
        for own, gram in zip(factors, grams, strict=True)
    ]


def weight_of(decay: Scalar) -> Scalar:
    """The weight of what is new: 1 in a sum, that is with a decay of 1."""
    if isinstance(decay, jax.Array):
        return jnp.where(decay == 1.0, 1.0, 1.0 - decay)
    return 1.0 if decay == 1.0 else 1.0 - decay


def weights_sum(decay: Scalar, steps: jax.Array) -> Scalar:
    """The sum of the weights in an average, to divide by; 1 for a sum."""
    if isinstance(decay, jax.Array):
        safe = jnp.where(decay == 1.0, 0.5, decay)
        return jnp.where(decay == 1.0, 1.0, debias(safe, steps))
    return 1.0 if decay == 1.0 else debias(decay, steps)


class RootOf(NamedTuple):
    """Which root is taken, and how.

    Attributes:
      exponent: 1/power of the root; None for twice the number of factors of a block.
      options: of ``inverse_root``.
    """

    exponent: float | None
    options: dict[str, Any]

    def power(self, factors: int) -> float:
        """The p of a block with so many factors."""
        return 2 * factors if self.exponent is None else self.exponent

    def function(self, power: float, scale: Scalar) -> Callable[..., tuple[jax.Array, jax.Array]]:
        """Of factor and last root to the new one, the last one if that failed, and whether."""

        def root(factor: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
            # Rounding must not make it unsymmetric, which neither method would notice.
            done = inverse_root(0.5 * (factor + factor.mT) / scale, power, **self.options)
            fine = ~done.failed
            new = jnp.where(fine[..., None, None], done.root, last)
            return new, done.failed.astype(jnp.int32)

        return root


def refresh(
    kronecker: Kronecker,
    state: KroneckerState,
    factors: Lists,
    root_of: RootOf,
    scale: Scalar,
    *,
    due: jax.Array,
    turn: jax.Array | None,
    every: int,
) -> tuple[Lists, KroneckerState, jax.Array]:
    """Returns the roots of new factors, the state with both, and how many roots failed.

    With a ``turn`` the roots whose turn it is are new, which costs the same at each update; else
    all of them where ``due``, and none elsewhere.
    """
    old, roots = map(kronecker.lists, state)

    def anew(factors: Lists, roots: Lists) -> tuple[Lists, jax.Array]:
        if turn is None:
            new, failed = kronecker.refreshed(factors, roots, root_of, scale)
        else:
            new, failed = kronecker.in_turn(factors, roots, root_of, scale, turn, every)
        return kronecker.placed(new, roots), failed

    def as_it_was(factors: Lists, roots: Lists) -> tuple[Lists, jax.Array]:
        del factors
        return kronecker.placed(roots, roots), jnp.zeros((), jnp.int32)

    if not any(kronecker.axes):
        new, failed = as_it_was(factors, roots)
    elif turn is not None:
        new, failed = anew(factors, roots)
    else:
        new, failed = branch(due, anew, as_it_was, factors, roots)
    return new, KroneckerState(kronecker.pack(factors, old), kronecker.layout.pack(new)), failed


def _apart(x: jax.Array) -> list[jax.Array]:
    """The matrices of an array ``(*batch, n, n)``."""
    if x.ndim == 2:
        return [x]
    mesh = mesh_of(x)
    if mesh is not None and any(tuple(factor_spec(x.shape, mesh))[:-2]):
        # Where layers lie on devices, a layer is no slice: by rows it is, or whole.
        rows = tuple(factor_spec(x.shape[-2:], mesh))
        x = place(x, mesh, PartitionSpec(*(None,) * (x.ndim - 2), *rows))
    flat = x.reshape(-1, *x.shape[-2:])
    return [flat[i] for i in range(flat.shape[0])]


class _Turns:
    """Matrices of one size, spread over turns: each comes once a round, whatever the mesh."""

    def __init__(self, batches: Sequence[tuple[int, ...]], every: int) -> None:
        self.every = every
        self.starts = [0, *itertools.accumulate(math.prod(batch) for batch in batches)]
        self.total = self.starts[-1]
        self.each = -(-self.total // every)

    def _places(self, turn: int) -> list[int]:
        """The matrices of a turn, filled up with its first one (or the first of all)."""
        own = list(range(turn, self.total, self.every))
        return own + [own[0] if own else 0] * (self.each - len(own))

    def picked(self, arrays: Sequence[jax.Array], turn: Any) -> list[jax.Array]:
        """The matrices of a turn; only these are copied."""

        def branch(number: int) -> Callable[..., tuple[jax.Array, ...]]:
            def of(*given: jax.Array) -> tuple[jax.Array, ...]:
                flat = [x for array in given for x in _apart(array)]
                return tuple(flat[i] for i in self._places(number))

            return of

        if not isinstance(turn, jax.core.Tracer):  # outside of a program nothing is compiled
            return list(branch(int(turn))(*arrays))
        branches = [branch(i) for i in range(min(self.every, self.total))]
        return list(jax.lax.switch(jnp.minimum(turn, len(branches) - 1), branches, *arrays))

    def count(self, failed: Sequence[jax.Array], turn: Any) -> jax.Array:
        """How many of a turn failed, those that fill it up not counted."""
        real = (self.total - turn + self.every - 1) // self.every
        return sum((jnp.where(k < real, jnp.sum(x), 0) for k, x in enumerate(failed)), jnp.int32(0))

    def put(
        self, arrays: Sequence[jax.Array], fresh: Sequence[jax.Array], turn: Any
    ) -> list[jax.Array]:
        """The arrays with those of the turn in their places."""
        out = []
        for x, start in zip(arrays, self.starts, strict=False):
            new = [
                jnp.where(turn == number % self.every, fresh[number // self.every], own)
                for number, own in enumerate(_apart(x), start)
            ]
            out.append(jnp.stack(new).reshape(x.shape) if x.ndim > 2 else new[0])
        return out
