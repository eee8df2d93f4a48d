"""Late reports converted, and the parameters that late clients start from."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from optkit.transforms.base import check_same_leaves
from optkit.transforms.hyperparams import check_number, check_static_int
from optkit.tree import PyTree, upcast

Converter: TypeAlias = Callable[[PyTree, PyTree, PyTree], PyTree]


def dc_asgd(lam: float) -> Converter:
    """Converts late gradients or displacements to first order, by their squares for a Hessian.

    ``D + lam*D*D*(x_now - x_start)``, entry by entry. The displacement ``D`` of local work has the
    sign of a gradient, so that one formula serves both; where it is some rate times a gradient,
    ``lam`` has to be divided by that rate.

    Args:
      lam: strength; the paper has 0.04 to 2 for gradients, the code of arXiv 2309.13536 has 4 for
        displacements.

    Returns:
      A converter for ``optkit.convert_stale``.

    Raises:
      ValueError: ``lam`` is negative.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> convert = optkit.federated.dc_asgd(0.5)
      >>> convert(jnp.array([2.0]), jnp.array([1.0]), jnp.array([2.0])).tolist()
      [4.0]

    Reference:
      Zheng et al., arXiv 1609.08326, DC-ASGD-c; the variant with a running mean of squares is
      ``optkit.federated.adaptive_dc_asgd``.
    """
    check_number("lam", lam, low=0.0)

    def convert(sent: PyTree, started: PyTree, params: PyTree) -> PyTree:
        def leaf(d: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
            wide = upcast(d)
            return wide + lam * wide * wide * (upcast(new) - upcast(old))

        return jax.tree.map(leaf, sent, started, params)

    return convert


def convert_stale(
    displacement: PyTree, started_from: PyTree, params: PyTree, convert: Converter
) -> PyTree:
    """Makes of what late clients send what they would send had they started from today's.

    Any such method is a function of one client's displacement, the parameters that it started from
    and today's. ``optkit.federated.dc_asgd`` is one; counting late ones less is another matter
    (``optkit.federated.polynomial_staleness``).

    Inversion of updates, which trains made-up data until its gradients reproduce the late update
    (arXiv 2309.13536), is not here: it has to run the user's model in thousands of steps for each
    report, and what it finds is a reconstruction of the client's data, an attack on its privacy.

    Args:
      displacement: tree of arrays (C, ...), a client each.
      started_from: tree of arrays (C, ...), the parameters that each client started from.
      params: today's.
      convert: (displacement, parameters it started from, today's) -> displacement, of one client.

    Returns:
      A tree like ``displacement``.

    Raises:
      ValueError: trees or shapes that differ.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> sent, old = jnp.array([[1.0], [2.0]]), jnp.array([[0.0], [1.0]])
      >>> convert = optkit.federated.dc_asgd(1.0)
      >>> optkit.convert_stale(sent, old, jnp.array([1.0]), convert).tolist()
      [[2.0], [2.0]]
    """
    check_same_leaves(displacement, started_from, "parameters they started from", shapes=True)
    check_same_leaves(displacement, params, "parameters")
    out = jax.vmap(convert, in_axes=(0, 0, None))(displacement, started_from, params)
    check_same_leaves(displacement, out, "displacements that convert returns", shapes=True)
    return out


class ParamsHistory(NamedTuple):
    """Parameters of the last steps; see ``keep_params``."""

    ring: PyTree  # arrays (steps+1, ...) in the dtypes of the parameters
    pushed: jax.Array  # int32 scalar, how many came after the first ones


def keep_params(params: PyTree, steps: int) -> ParamsHistory:
    """Makes a history of parameters, from which late clients start.

    Args:
      params: the first ones.
      steps: how many steps back it reaches.

    Returns:
      A ``ParamsHistory``: ``steps+1`` copies.

    Raises:
      ValueError: ``steps`` is no integer of at least 1.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> history = optkit.federated.keep_params(jnp.array([1.0]), 2)
      >>> history = optkit.federated.push_params(history, jnp.array([5.0]))
      >>> [optkit.federated.stale_params(history, late).tolist() for late in (0, 1, 2)]
      [[5.0], [1.0], [1.0]]
    """
    check_static_int("steps", steps)
    shape = (steps + 1,)
    ring = jax.tree.map(lambda p: jnp.array(jnp.broadcast_to(p, shape + jnp.shape(p))), params)
    return ParamsHistory(ring, jnp.zeros((), jnp.int32))


def push_params(history: ParamsHistory, params: PyTree) -> ParamsHistory:
    """Puts today's parameters into a history; the oldest leave it. Donate the old one.

    Args:
      history: of ``keep_params``.
      params: today's.

    Returns:
      The new history.
    """
    check_same_leaves(params, history.ring, "history")
    pushed = history.pushed + 1

    def leaf(p: jax.Array, kept: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(kept, p, pushed % kept.shape[0], 0)

    return ParamsHistory(jax.tree.map(leaf, params, history.ring), pushed)


def stale_params(history: ParamsHistory, delay: Any) -> PyTree:
    """Returns the parameters of so many steps ago: where a late gradient has to be taken.

    Args:
      history: of ``push_params``.
      delay: int32, steps ago, which may be traced; beyond what is kept the oldest. ``jax.vmap``
        over it gives what several clients start from.

    Returns:
      A tree like the parameters.
    """

    def leaf(kept: jax.Array) -> jax.Array:
        back = jnp.clip(jnp.asarray(delay, jnp.int32), 0, kept.shape[0] - 1)
        back = jnp.minimum(back, history.pushed)
        return lax.dynamic_index_in_dim(kept, (history.pushed - back) % kept.shape[0], 0, False)

    return jax.tree.map(leaf, history.ring)
