"""Policies that choose single entries: at random, by size, by a tree or a function of yours."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.linalg.largest import largest_of, largest_of_each
from optkit.masks.policy import (
    Active,
    Keep,
    Look,
    Policy,
    Rest,
    at_masked,
    check_keep,
    count_of,
    every,
    masked_leaves,
    scope,
)
from optkit.transforms.hyperparams import check_choice
from optkit.transforms.noise import Key, check_seed, fresh_key, normal_like
from optkit.tree import MATRIX_ROLES, PyTree, RuleLike, Selector, leaves_with_paths
from optkit.tree.paths import values_by_path

__all__ = ["fixed", "magnitude", "own", "random"]


def _by_share(keep: Keep, path: str, leaf: Any) -> Active:
    shape = tuple(np.shape(leaf))
    return Active(shape, count_of("keep", keep, int(np.prod(shape, dtype=int)), path))


@cached_factory
def random(
    keep: Keep,
    *,
    interval: int | None = None,
    where: Selector = MATRIX_ROLES,
    rest: Rest = "train",
    key: Key = None,
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Chooses entries of each leaf at random: the baseline that a rule has to beat.

    Args:
      keep: how many entries of each leaf train: a share in (0, 1], or a number.
      interval: steps between two draws; None draws once.
      where: leaves that are masked: role, glob, function, or a tuple of those.
      rest: what becomes of other leaves, "train" or "freeze".
      key: seed or PRNG key; None for 0. The draw depends on it, on the step and the leaf's path.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``; it keeps a key.

    Raises:
      ValueError: a share or number out of range, or larger than a leaf.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.update_mask(optax.sgd(1.0), optkit.masks.random(2), state="drop")
      >>> params = {"kernel": jnp.ones((3, 4))}
      >>> float(tx.update(params, tx.init(params), params)[0]["kernel"].sum())
      -2.0
    """
    check_keep("keep", keep)
    check_seed(key)
    area = scope(where, rest, roles)
    due = every(interval)
    active = lambda params: area.active(params, functools.partial(_by_share, keep))  # noqa: E731

    def mask(state: jax.Array, look: Look) -> tuple[PyTree, jax.Array]:
        slots = active(look.params)
        leaves, places, chosen = masked_leaves(slots, look.params, look.params, slots)
        del leaves
        tree = at_masked(look.params, slots, places)
        drawn = jax.tree.leaves(normal_like(tree, state, look.step, None))
        masks = largest_of_each(drawn, [slot.count for slot in chosen])
        return at_masked(look.params, slots, masks), state

    return Policy("random", active, mask, lambda params: fresh_key(key), due)


@cached_factory
def magnitude(
    keep: Keep,
    *,
    smallest: bool = False,
    over: str = "leaf",
    interval: int | None = None,
    where: Selector = MATRIX_ROLES,
    rest: Rest = "train",
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Chooses the entries of largest magnitude, or of smallest as PaFI does.

    Args:
      keep: how many entries train: a share in (0, 1], or a number, of each leaf or of all.
      smallest: choose the smallest.
      over: "leaf", ``keep`` counts in each leaf, or "all", in all masked leaves together.
      interval: steps between two choices; None chooses once, at init.
      where: leaves that are masked: role, glob, function, or a tuple of those.
      rest: what becomes of other leaves, "train" or "freeze".
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``; it keeps nothing. Of equal magnitudes the first count.

    Raises:
      ValueError: an option out of range, or more entries than there are.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> policy = optkit.masks.magnitude(0.25, smallest=True)
      >>> params = {"kernel": jnp.array([[4.0, -0.1], [2.0, 3.0]])}
      >>> tx = optkit.update_mask(optax.sgd(1.0), policy)
      >>> tx.init(params).kept["kernel"].tolist()
      [[False, True], [False, False]]

    Reference:
      PaFI is one of the baselines of Step-by-Step Unmasking, arXiv 2408.14470.
    """
    check_keep("keep", keep)
    check_choice("over", over, ("leaf", "all"))
    area = scope(where, rest, roles)

    def choose(path: str, leaf: Any) -> Active:
        if over == "leaf":
            return _by_share(keep, path, leaf)
        return Active(tuple(np.shape(leaf)), None)

    active = lambda params: area.active(params, choose)  # noqa: E731

    def mask(state: PyTree, look: Look) -> tuple[PyTree, PyTree]:
        slots = active(look.params)
        leaves, chosen = masked_leaves(slots, look.params, slots)
        if over == "leaf":
            counts = [slot.count for slot in chosen]
            masks = largest_of_each(leaves, counts, smallest=smallest)
        else:
            size = sum(x.size for x in leaves)
            count = count_of("keep", keep, size, "all masked leaves together") if size else 0
            masks = largest_of(leaves, count, smallest=smallest)
        return at_masked(look.params, slots, masks), state

    return Policy("magnitude", active, mask, due=every(interval))


def fixed(masks: PyTree) -> Policy:
    """Trains what a tree of masks says.

    Args:
      masks: a tree like the parameters, or a prefix of one, of bools (the whole leaf) and bool
        arrays of the leaf's shape, with 1 for axes that are taken whole; NumPy arrays or concrete
        ones, since the number of True entries decides shapes.

    Returns:
      A policy for ``optkit.update_mask``; a leaf of False has no state.

    Raises:
      ValueError: at init a leaf without a mask, or a mask of another shape.

    Example:
      >>> import numpy as np, jax.numpy as jnp, optax, optkit
      >>> policy = optkit.masks.fixed({"w": np.array([True, False]), "b": False})
      >>> params = {"w": jnp.ones(2), "b": jnp.ones(3)}
      >>> state = optkit.update_mask(optax.trace(0.9), policy, state="drop").init(params)
      >>> state.inner.trace["w"].shape, state.inner.trace["b"]
      ((1,), MaskedNode())
    """
    given = jax.tree.map(lambda x: x if isinstance(x, bool) else np.asarray(x, np.bool_), masks)

    def of(params: PyTree) -> list[Any]:
        found = values_by_path(params, given)
        for path, _ in leaves_with_paths(params):
            if path not in found:
                raise ValueError(f"the tree of masks has no entry for leaf {path!r}; add one")
        return [found[path] for path, _ in leaves_with_paths(params)]

    def active(params: PyTree) -> PyTree:
        out = [_of_array(x) if not isinstance(x, bool) else x for x in of(params)]
        return jax.tree.unflatten(jax.tree.structure(params), out)

    def mask(state: PyTree, look: Look) -> tuple[PyTree, PyTree]:
        out = [
            x if isinstance(x, bool) else _beside(x, p)
            for x, p in zip(of(look.params), jax.tree.leaves(look.params), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(look.params), out), state

    return Policy("fixed", active, mask)


def _of_array(mask: np.ndarray) -> bool | Active:
    if not mask.any():
        return False
    return True if mask.all() else Active(mask.shape, int(mask.sum()))


def _beside(mask: np.ndarray, leaf: jax.Array) -> jax.Array:
    """The mask as an array that lies like the parameter."""
    if mask.shape != leaf.shape:
        return jnp.asarray(mask)
    return jnp.zeros_like(leaf, jnp.bool_) | jnp.asarray(mask)


def own(
    function: Callable[[jax.Array, PyTree | None, PyTree], PyTree],
    *,
    counts: Mapping[str, int] | None = None,
    interval: int | None = 1,
    gradients: bool = True,
) -> Policy:
    """Makes a policy of a function of yours.

    Args:
      function: (finished updates, gradients, parameters) -> a tree like the parameters of bools
        (Python's: the whole leaf, for good) and bool arrays of the leaf's shape, with 1 for axes
        that are taken whole. It runs inside ``jit``.
      counts: path -> how many entries of the mask are True at most, for ``state="drop"``, which
        has state for so many; if more are, the first of them train. Without a number a leaf cannot
        be dropped.
      interval: steps between two choices, the first at step 0; None chooses once.
      gradients: False says that the function does not look at gradients, which are None for the
        choice that init then makes.

    Returns:
      A policy for ``optkit.update_mask``; it keeps nothing.

    Raises:
      ValueError: at init counts that name no leaf, a mask that does not fit its leaf, or, while
        the program is built, one that is not bool.

    Example:
      >>> import jax, jax.numpy as jnp, optax, optkit
      >>> upwards = lambda step, g, p: jax.tree.map(lambda g: g > 0, g)
      >>> tx = optkit.update_mask(optax.sgd(1.0), optkit.masks.own(upwards))
      >>> params = {"w": jnp.array([1.0, -1.0])}
      >>> tx.update(params, tx.init(params), params)[0]["w"].tolist()
      [-1.0, 0.0]
    """
    due = every(interval)
    wanted = dict(counts or {})

    def active(params: PyTree) -> PyTree:
        paths = [path for path, _ in leaves_with_paths(params)]
        given: list[Any] = []

        def shapes(tree: PyTree) -> list[Any]:
            structure: Any = jax.tree.structure(tree)
            step = jnp.zeros((), jnp.int32)
            found = function(step, tree if gradients else None, tree)
            given[:] = structure.flatten_up_to(found)
            return [jnp.asarray(x) for x in given]

        traced = jax.eval_shape(shapes, params)
        out = [
            x if isinstance(x, bool) else Active(tuple(like.shape), wanted.get(path))
            for x, like, path in zip(given, traced, paths, strict=True)
        ]
        lost = [path for path in wanted if path not in paths]
        if lost and paths:
            raise ValueError(f"counts name {lost[0]!r}, which is no leaf; the leaves are {paths}")
        return jax.tree.unflatten(jax.tree.structure(params), out)

    def mask(state: PyTree, look: Look) -> tuple[PyTree, PyTree]:
        return function(look.step, look.grads, look.params), state

    if due is not True and due is not False and gradients:
        later: Any = due
        due = lambda step: (step == 0) | later(step)  # noqa: E731
    return Policy("own", active, mask, due=due, needs_gradients=gradients)
