"""An inner transformation that runs on what is left of the matrices, and what a new basis does."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax

from optkit.transforms.base import Transformation, branch, keep_dtypes
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.refresh import InForce
from optkit.transforms.low_rank.subspace import Bases, Subspaces
from optkit.tree import PyTree, accumulator_dtype, map_with_path, match_state
from optkit.tree.sharding import projected_spec, zeros_beside

OnRefresh = Literal["keep", "reset", "transport"]
# What optimizers call averages of gradients, and of their squares.
LINEAR_NAMES = ("mu", "m", "momentum", "trace", "exp_avg", "buf")
SQUARE_NAMES = ("nu", "v", "nu_max", "exp_avg_sq")


def groups_of(spaces: Subspaces, apart: bool) -> list[list[int]]:
    """Which parts share one state of the inner transformation: all, or each has its own."""
    indices = list(range(len(spaces.parts)))
    return [[i] for i in indices] if apart else [indices] if indices else []


def tree_of(spaces: Subspaces, values: Sequence[Any], group: Sequence[int]) -> PyTree:
    """A tree like that of the matrices, with masked nodes for those of other groups."""
    chosen = set(group)
    own = [v if i in chosen else optax.MaskedNode() for i, v in enumerate(values)]
    return spaces.layout.pack(own)


def placeholders(spaces: Subspaces, matrices: PyTree) -> list[jax.Array]:
    """Zeros of the projected shapes: no basis is known when an optimizer is initialised."""
    return [
        zeros_beside(leaf, part.shape, accumulator_dtype(leaf), projected_spec)
        for part, leaf in zip(spaces.parts, spaces.leaves(matrices), strict=True)
    ]


def run_inner(
    inner: Transformation,
    spaces: Subspaces,
    groups: list[list[int]],
    states: tuple[PyTree, ...],
    low: Sequence[jax.Array],
    params: Sequence[jax.Array] | None,
    extra_args: dict[str, Any],
) -> tuple[list[jax.Array], tuple[PyTree, ...]]:
    """Returns the inner direction of each part, and the new states."""
    out: dict[int, jax.Array] = {}
    new = []
    for group, state in zip(groups, states, strict=True):
        own = None if params is None else tree_of(spaces, params, group)
        given = tree_of(spaces, low, group)
        result, after = inner.update(given, state, own, **extra_args)
        values = spaces.layout.unpack(result)
        out.update({i: values[i] for i in group})
        new.append(keep_dtypes(after, state))
    return [out[i] for i in range(len(spaces.parts))], tuple(new)


def check_on_refresh(how: OnRefresh, asked: Subspace) -> None:
    """Raises for what cannot be done to an inner state at refreshes of this kind."""
    check_choice("state_on_refresh", how, get_args(OnRefresh))
    if how == "reset" and asked.lazy is not None:
        raise ValueError(
            "state_on_refresh='reset' begins anew for all matrices of a leaf, and lazy refreshes "
            "have each its own time; take 'keep' or 'transport'"
        )
    if how != "keep" and asked.online:
        raise ValueError(
            f"state_on_refresh={how!r}: basis='online' is never refreshed; take 'keep'"
        )


def on_refresh(
    how: OnRefresh,
    inner: Transformation,
    spaces: Subspaces,
    groups: list[list[int]],
    states: tuple[PyTree, ...],
    matrices: PyTree,
    count: jax.Array,
    now: InForce,
    new: Bases,
) -> tuple[PyTree, ...]:
    """Returns the inner states that meet the new bases."""
    if how == "keep":
        return states
    out = []
    for group, state in zip(groups, states, strict=True):
        if how == "reset":
            due = now.dues[group[0]]
            fresh = inner.init(tree_of(spaces, placeholders(spaces, matrices), group))
            # A choice and no branch: it melts into the first pass over the state.
            out.append(jax.tree.map(lambda a, b, due=due: jnp.where(due, a, b), fresh, state))
            continue
        due = now.dues[group[0]]
        if spaces.asked.lazy is not None:
            due = jnp.any(jnp.stack([jnp.any(now.dues[i]) for i in group]))
        move = lambda state, group=group: _transported(spaces, group, state, now, new)  # noqa: E731
        out.append(branch(due & (count > 0), move, lambda state: state, state))
    return tuple(out)


def _transported(
    spaces: Subspaces, group: Sequence[int], state: PyTree, now: InForce, new: Bases
) -> PyTree:
    old = now.before()
    shapes = tree_of(spaces, [jax.ShapeDtypeStruct(p.shape, float) for p in spaces.parts], group)
    owners = [tree_of(spaces, list(range(len(spaces.parts))), group)]
    index = dict(zip(*(jax.tree.leaves(t) for t in (_paths(shapes), owners[0])), strict=True))
    leaves = []
    for match in match_state(state, shapes):
        leaf: Any = match.leaf
        if match.is_stored:
            raise ValueError(
                f"state_on_refresh='transport' cannot turn what a codec stored of "
                f"{match.owner!r} of leaf {match.param_path!r}; take 'keep', or keep moments in "
                "float32"
            )
        if match.param is None or leaf.shape != match.param.shape:
            leaves.append(leaf)
            continue
        names = [getattr(entry, "name", "") for entry in match.key_path]
        kind = next((n for n in reversed(names) if n in (*LINEAR_NAMES, *SQUARE_NAMES)), None)
        if kind is None:
            raise ValueError(
                f"state_on_refresh='transport' does not know what {match.owner!r} of leaf "
                f"{match.param_path!r} is; known are averages called "
                f"{', '.join((*LINEAR_NAMES, *SQUARE_NAMES))}: take 'reset' or 'keep'"
            )
        i = index[match.param_path]
        part = spaces.parts[i]
        squared = kind in SQUARE_NAMES
        wide = jnp.asarray(leaf, jnp.promote_types(leaf.dtype, jnp.float32))
        moved = part.carried(wide, old[i], new[i], squared, spaces.asked.precision)
        if spaces.asked.lazy is not None:  # each matrix in its own turn
            moved = jnp.where(now.dues[i][..., None, None], moved, wide)
        leaves.append(moved.astype(leaf.dtype))
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def _paths(tree: PyTree) -> PyTree:
    return map_with_path(lambda path, _: path, tree)
