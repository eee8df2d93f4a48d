"""What every part is built from: the constructor and the maps over leaves."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from optkit.tree import PyTree, leaves_with_paths, upcast

Transformation: TypeAlias = optax.GradientTransformationExtraArgs


def _mismatch(updates: PyTree, other: PyTree, what: str) -> str:
    given = dict(leaves_with_paths(updates))
    held = dict(leaves_with_paths(other))
    lines = [f"  {path}: in the updates, not in the {what}" for path in given if path not in held]
    lines += [f"  {path}: in the {what}, not in the updates" for path in held if path not in given]
    return "\n".join(lines) or "  same paths, other containers"


def check_same_leaves(updates: PyTree, other: PyTree, what: str) -> None:
    """Raises ValueError with the paths that differ unless a tree has the leaves of the updates."""
    structure: Any = jax.tree.structure(updates)
    if structure != jax.tree.structure(other):
        raise ValueError(
            "the updates do not have the leaves that this transformation holds or was given:\n"
            + _mismatch(updates, other, what)
            + "\ngive gradients of the same tree as the parameters passed to init"
        )


def map_leaves(function: Callable[..., Any], updates: PyTree, *rest: PyTree) -> PyTree:
    """Maps a function over updates and trees of the same structure.

    ``None`` and masked nodes are passed over.

    Raises:
      ValueError: a tree has other leaves than the updates; lists their paths.
    """
    for tree in rest:
        check_same_leaves(updates, tree, "other tree")
    return jax.tree.map(function, updates, *rest)


def map_updates(function: Callable[..., jax.Array], updates: PyTree, *rest: PyTree) -> PyTree:
    """Like ``map_leaves``, computing in float32 or better and keeping the dtype of the updates."""

    def leaf(u: jax.Array, *others: jax.Array) -> jax.Array:
        return function(upcast(u), *map(upcast, others)).astype(u.dtype)

    return map_leaves(leaf, updates, *rest)


def need_params(params: PyTree | None, name: str) -> PyTree:
    """Returns params, or raises ValueError with the remedy if the caller left them out."""
    if params is None:
        raise ValueError(f"{name} needs the parameters: call tx.update(updates, state, params)")
    return params


def unzip(structure_of: PyTree, pairs: PyTree, count: int) -> tuple[PyTree, ...]:
    """Splits a tree whose leaves are ``count``-tuples into that many trees."""
    structure: Any = jax.tree.structure(structure_of)
    flat = structure.flatten_up_to(pairs)
    return tuple(structure.unflatten([pair[i] for pair in flat]) for i in range(count))


def keep_dtypes(new: PyTree, old: PyTree) -> PyTree:
    """Returns a new state in the dtypes of the old one.

    A foreign transformation that was initialised on 16-bit parameters promotes its statistics once
    it is given float32 updates: the next step would compile anew, and a scan or cond refuse it.
    """

    def leaf(a: Any, b: Any) -> Any:
        same = getattr(a, "dtype", None) == getattr(b, "dtype", None)
        return a if same else jnp.asarray(a, jnp.asarray(b).dtype)

    return jax.tree.map(leaf, new, old)


def dtypes_of_updates(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    state: PyTree,
    params: PyTree | None,
    extra_args: dict[str, Any],
) -> PyTree:
    """Returns the dtypes in which a wrapper that feeds float32 to ``inner`` hands on its updates.

    They are those of the updates, but for 16-bit parameters those that ``inner`` itself gives:
    ``master_weights`` and ``stochastic_round`` answer 16-bit gradients with float32 updates, which
    must not be rounded again.
    """
    own = jax.tree.map(lambda g: g.dtype, updates)
    if params is None or not any(g.dtype.itemsize < 4 for g in jax.tree.leaves(updates)):
        return own
    given, _ = jax.eval_shape(lambda g: inner.update(g, state, params, **extra_args), updates)
    return jax.tree.map(
        lambda g, p, u: u.dtype if p.dtype.itemsize < 4 else g.dtype, updates, params, given
    )


def stateless(update: Callable[[PyTree, PyTree | None], PyTree]) -> Transformation:
    """Builds a transformation without state from a function of (updates, params)."""

    def init_fn(params: PyTree) -> optax.EmptyState:
        del params
        return optax.EmptyState()

    def update_fn(
        updates: PyTree, state: optax.EmptyState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, optax.EmptyState]:
        del extra_args
        return update(updates, params), state

    return Transformation(init_fn, update_fn)
