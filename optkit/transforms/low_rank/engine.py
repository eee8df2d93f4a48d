"""What ``low_rank`` and its relatives share: project, run the inner transformation, combine."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.transforms.base import Transformation, check_gradients
from optkit.transforms.hyperparams import ScalarOrSchedule, recorded
from optkit.transforms.low_rank.inner import (
    OnRefresh,
    check_on_refresh,
    groups_of,
    on_refresh,
    placeholders,
    run_inner,
    tree_of,
)
from optkit.transforms.low_rank.online import basis_optimizer_of, moved_bases
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.refresh import in_force
from optkit.transforms.low_rank.subspace import Bases, Subspaces
from optkit.transforms.route import Rules, assign, only
from optkit.transforms.split import rules_for
from optkit.tree import MATRIX_ROLES, PyTree, upcast
from optkit.tree.sharding import place_like, place_projected

_RULES: Rules = [(MATRIX_ROLES, "low"), ("**", "rest")]


class LowRankState(NamedTuple):
    """State of ``low_rank`` and of the parts built like it."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    # One tree a projected side, none if drawn: (*batch, side, rank), or what a codec stored of it.
    basis: tuple[PyTree, ...]
    projected: tuple[PyTree, ...]  # states of the inner transformation over what was projected
    rest: PyTree  # its state over all other leaves, () if there are none
    residual: PyTree  # what the rule of the residual keeps, () if nothing
    lazy: PyTree  # LazyRefreshState, () without lazy refreshes
    basis_state: PyTree  # that of the optimizer of online bases, () without
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


class Step(NamedTuple):
    """What a rule sees that combines: a list of parts each, ``(*batch, fan_in, fan_out)``."""

    spaces: Subspaces
    grads: list[jax.Array]
    bases: Bases
    low: list[jax.Array]  # projected gradients
    direction: list[jax.Array]  # what the inner transformation made of them
    params: PyTree  # those of the matrices, as they lie; None if not given
    step: jax.Array  # finished updates


class Rule(NamedTuple):
    """How the update is put together from gradient and inner direction."""

    init: Callable[[Subspaces, PyTree], PyTree]
    before: Callable[[Subspaces, list[jax.Array], PyTree], list[jax.Array]]
    combine: Callable[[Step, PyTree], tuple[list[jax.Array], PyTree]]


def split_tree(tree: PyTree, asked: Subspace) -> tuple[PyTree, PyTree]:
    """Returns the hidden matrices of a tree, and all the rest, with masked nodes in between."""
    labels = list(assign(tree, rules_for(tree, _RULES, asked.dims), asked.roles).values())
    return only(tree, labels, "low"), only(tree, labels, "rest")


def _join(tree: PyTree, matrices: PyTree, rest: PyTree) -> PyTree:
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    one, other = (jax.tree.leaves(t, is_leaf=masked) for t in (matrices, rest))
    merged = [b if masked(a) else a for a, b in zip(one, other, strict=True)]
    kept = [x for x in merged if not masked(x)]
    return jax.tree.unflatten(jax.tree.structure(tree), kept)


def build(
    inner: Transformation,
    asked: Subspace,
    rule: Rule,
    state_on_refresh: OnRefresh,
    numbers: dict[str, ScalarOrSchedule],
    rest: Transformation | None = None,
) -> Transformation:
    """Returns the transformation that low-rank methods are made of."""
    for_rest = inner if rest is None else rest
    apart = asked.stagger and state_on_refresh != "keep"
    check_on_refresh(state_on_refresh, asked)

    def init_fn(params: PyTree) -> LowRankState:
        matrices, others = split_tree(params, asked)
        spaces = Subspaces.of(matrices, asked)
        states = tuple(
            inner.init(tree_of(spaces, placeholders(spaces, matrices), group))
            for group in groups_of(spaces, apart)
        )
        count = jnp.zeros((), jnp.int32)
        bases, lazy = spaces.init(matrices)
        return LowRankState(
            count,
            bases,
            states,
            for_rest.init(others) if jax.tree.leaves(others) else (),
            rule.init(spaces, matrices),
            lazy,
            basis_optimizer_of(asked).init(bases) if asked.online else (),
            recorded(count, False, **numbers),
        )

    def update_fn(
        updates: PyTree, state: LowRankState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, LowRankState]:
        check_gradients(updates, params)
        matrices, others = split_tree(updates, asked)
        own, other = (None, None) if params is None else split_tree(params, asked)
        spaces = Subspaces.of(matrices, asked)
        groups = groups_of(spaces, apart)
        grads = spaces.split(jax.tree.map(upcast, matrices))
        grads = rule.before(spaces, grads, state.residual)
        now = in_force(spaces, state.basis, state.lazy, grads, state.count)
        wide = [tuple(_wide(b, g) for b in bs) for bs, g in zip(now.bases, grads, strict=True)]
        count, projected = state.count, state.projected
        states = on_refresh(
            state_on_refresh, inner, spaces, groups, projected, matrices, count, now, wide
        )
        low = [
            place_projected(x, leaf)
            for x, leaf in zip(_down(spaces, grads, wide), spaces.leaves(matrices), strict=True)
        ]
        held = None if own is None else _down(spaces, _upcast_parts(spaces, own), wide)
        direction, states = run_inner(inner, spaces, groups, states, low, held, extra_args)
        step = Step(spaces, grads, wide, low, direction, own, state.count)
        done, residual = rule.combine(step, state.residual)
        out = jax.tree.map(lambda u, g: u.astype(g.dtype), spaces.merge(done), matrices)
        after, out_rest = state.rest, others
        if jax.tree.leaves(others):
            out_rest, after = for_rest.update(others, state.rest, other, **extra_args)
        bases, lazy = spaces.pack(now.held)
        moved = state.basis_state
        if asked.online:
            bases, moved = moved_bases(spaces, now, bases, moved, grads, state.count)
        new = LowRankState(
            state.count + 1,
            bases,
            states,
            after,
            residual,
            lazy,
            moved,
            recorded(state.count, False, **numbers),
        )
        return _join(updates, out, out_rest), new

    return Transformation(init_fn, update_fn)


def _wide(basis: jax.Array, like: jax.Array) -> jax.Array:
    return basis if jnp.issubdtype(basis.dtype, jnp.integer) else basis.astype(like.dtype)


def _upcast_parts(spaces: Subspaces, tree: PyTree) -> list[jax.Array]:
    return spaces.split(jax.tree.map(upcast, tree))


def _down(spaces: Subspaces, xs: Sequence[jax.Array], bases: Bases) -> list[jax.Array]:
    precision = spaces.asked.precision
    return [
        part.down(x, own, precision) for part, x, own in zip(spaces.parts, xs, bases, strict=True)
    ]


def up(
    spaces: Subspaces, xs: Sequence[jax.Array], bases: Bases, like: Sequence[jax.Array]
) -> list[jax.Array]:
    """Maps one array a part back to the matrices' own shapes, placed like them."""
    precision = spaces.asked.precision
    return [
        place_like(part.up(x, own, precision), g)
        for part, x, own, g in zip(spaces.parts, xs, bases, like, strict=True)
    ]
