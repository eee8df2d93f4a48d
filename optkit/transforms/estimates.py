"""Estimates given to an update: called in the steps that need them, cut to the leaves at hand."""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optkit.curvature import Estimate, hutchinson
from optkit.transforms.base import branch, check_same_leaves, map_leaves
from optkit.tree import PyTree, upcast
from optkit.tree.sharding import place_like


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def cut(tree: PyTree, updates: PyTree, what: str) -> PyTree:
    """Returns a tree of the leaves of the updates; raises ValueError with paths if it lacks any."""
    if any(map(_is_masked, jax.tree.leaves(updates, is_leaf=_is_masked))):
        with contextlib.suppress(TypeError, ValueError):  # the check says where they differ
            tree = jax.tree.map(
                lambda u, x: u if _is_masked(u) else x, updates, tree, is_leaf=_is_masked
            )
    remedy = f"give {what}= a tree like the parameters, or what computes one of them"
    check_same_leaves(updates, tree, what, shapes=True, remedy=remedy)
    return tree


def check_estimate(what: str, given: Any, like: str) -> None:
    """Raises TypeError if a function is no estimate, which takes parameters and a key.

    Args:
      what: name of the argument.
      given: its value; trees pass.
      like: the call that makes an estimate of a loss.
    """
    if not callable(given):
        return
    try:
        inspect.signature(given).bind(None, None)
    except TypeError as error:
        raise TypeError(
            f"{what}= takes an estimate, a function of (params, key), and got one that cannot be "
            f"called so ({error}): of a loss make one with {like}"
        ) from error
    except ValueError:
        pass  # a builtin tells nothing of its arguments


def choose_estimate(
    name: str, given: Any, own: Estimate | None, value_fn: Callable[[PyTree], Any] | None
) -> Any:
    """Returns the estimate or tree to use: what update was given, else the optimizer's own.

    Raises:
      TypeError: a function that is no estimate.
      ValueError: there is none; says what to pass.
    """
    found = own if given is None else given
    if found is not None:
        check_estimate("curvature", found, "optkit.curvature.hutchinson(loss_fn, batch)")
        return found
    if value_fn is not None:
        return hutchinson(value_fn)
    raise ValueError(
        f"{name} needs curvature: call tx.update(grads, state, params, value_fn=lambda p: "
        "loss_fn(p, batch)), of which it makes Hutchinson's estimate, or give curvature=, an "
        "estimate such as optkit.curvature.gauss_newton_bartlett(logits_fn, inputs) or "
        "optkit.curvature.hutchinson(loss_fn, batch), or a tree like the parameters"
    )


def follow_if_due(
    due: jax.Array | bool,
    held: PyTree,
    estimate: Any,
    params: PyTree | None,
    key: jax.Array,
    *,
    decay: Any,
    like: PyTree,
    name: str,
    fresh: jax.Array | None = None,
) -> PyTree:
    """Returns ``decay*h + (1-decay)*estimate`` if due, else ``h``, without computing the estimate.

    Entries of the estimate that are not finite leave ``h`` as it is.

    Args:
      due: whether to refresh.
      held: the average, a tree like the updates.
      estimate: a tree like the updates, or ``(params, key) -> tree``.
      params: what the estimate is called with.
      key: PRNG key for it.
      decay: decay rate of the average.
      like: the updates.
      name: who asks, for messages.
      fresh: whether nothing is held yet, so that the average is the estimate; None for never.
    """

    def step(h: jax.Array, new: jax.Array) -> jax.Array:
        wide = place_like(upcast(new), h)
        followed = decay * upcast(h) + (1.0 - decay) * wide
        if fresh is not None:
            followed = jnp.where(fresh, wide, followed)
        return jnp.where(jnp.isfinite(wide), followed, upcast(h)).astype(h.dtype)

    if not callable(estimate):
        tree = cut(estimate, like, "curvature")
        return map_leaves(lambda h, new: jnp.where(due, step(h, new), h), held, tree)
    if params is None:
        raise ValueError(f"{name} needs the parameters: call tx.update(updates, state, params)")

    def renew(held: PyTree) -> PyTree:
        return map_leaves(step, held, cut(estimate(params, key), like, "curvature"))

    return branch(due, renew, lambda held: held, held)
