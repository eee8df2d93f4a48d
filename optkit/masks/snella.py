"""SNELLA's allocator: budgets of matrices by sensitivity, and entries that compete inside."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.linalg.largest import largest_of_each
from optkit.masks.policy import (
    Active,
    Look,
    Policy,
    Rest,
    at_masked,
    masked_leaves,
    scope,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    check_static_number,
    recorded,
    value_at,
)
from optkit.tree import (
    MATRIX_ROLES,
    PyTree,
    RuleLike,
    Selector,
    upcast,
    zeros_like_params,
)

__all__ = ["SnellaState", "snella", "snella_share"]


class SnellaState(NamedTuple):
    """What the policy ``snella`` keeps; None at leaves that it does not mask."""

    sensitivity: PyTree  # like params, float32: average of |g p|
    uncertainty: PyTree  # like params, float32: average of how far |g p| is from its average
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def snella_share(
    step: jax.Array | int, initial: float, target: float, begin: int, end: int
) -> jax.Array:
    """Returns which share of all masked entries trains at a step.

    ``initial`` until ``begin``, ``target`` from ``end`` on, and between them
    ``target + (initial - target)*(1 - x)**3`` where ``x`` goes from 0 to 1.

    Args:
      step: finished updates.
      initial: share at first.
      target: share in the end.
      begin: step at which the share begins to change.
      end: step at which it has reached the target.

    Returns:
      A float32 scalar.
    """
    x = jnp.clip((jnp.asarray(step, jnp.float32) - begin) / max(1, end - begin), 0.0, 1.0)
    return target + (initial - target) * (1.0 - x) ** 3


@cached_factory
def snella(
    target: float,
    *,
    initial: float = 1.0,
    begin: int = 0,
    end: int = 1000,
    interval: int = 10,
    b1: ScalarOrSchedule = 0.85,
    b2: ScalarOrSchedule = 0.85,
    where: Selector = MATRIX_ROLES,
    rest: Rest = "train",
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Gives every matrix a budget by its sensitivity; the entries inside compete for it.

    At each step, for each masked leaf, ``s = |g*p|``, ``S <- b1*S + (1-b1)*s`` and
    ``U <- b2*U + (1-b2)*|s - S|``; at every ``interval``-th of them:

    1. the share of all entries that trains is ``optkit.masks.snella_share``;
    2. a leaf gets a part of them in proportion to the mean of ``S*U`` over its entries, at least
       one entry and at most all;
    3. inside a leaf the entries of largest ``S*U`` train.

    Args:
      target: share of the entries that trains in the end, in (0, 1].
      initial: share that trains at first.
      begin: step at which the share begins to change.
      end: step at which it has reached the target.
      interval: steps between two choices, the first at step 0.
      b1: decay rate of the sensitivity.
      b2: decay rate of the uncertainty.
      where: leaves that are masked.
      rest: what becomes of other leaves, "train" or "freeze".
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask`` with ``state="hold"`` or ``"zero"``. It keeps two float32
      numbers for each masked entry.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.update_mask(optax.sgd(1.0), optkit.masks.snella(0.25, initial=0.25))
      >>> params = {"kernel": jnp.arange(1.0, 9.0).reshape(2, 4)}
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> (u["kernel"] != 0).tolist()
      [[False, False, False, False], [False, False, True, True]]

    Reference:
      Kernelized Sparse Fine-Tuning with Bi-level Parameter Competition (2025), code at
      ssfgunner/SNELL: the allocator of budgets alone. There the entries of a kernelised low-rank
      update compete by their size; here it is those of the weight, by the same ``S*U``.
    """
    for name, value in (("target", target), ("initial", initial)):
        check_static_number(name, value)
        if not 0.0 < value <= 1.0:
            raise ValueError(f"{name}={value!r} is a share and must be in (0, 1]")
    check_static_int("begin", begin, low=0)
    check_static_int("end", end, low=begin)
    check_static_int("interval", interval)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    area = scope(where, rest, roles)

    def active(params: PyTree) -> PyTree:
        return area.active(params, lambda path, leaf: Active(tuple(np.shape(leaf)), None))

    def keep(step: jax.Array) -> dict[str, jax.Array]:
        return recorded(step, b1=b1, b2=b2)

    def init(params: PyTree) -> SnellaState:
        def zeros() -> PyTree:
            slots = active(params)
            (leaves,) = masked_leaves(slots, params)
            return at_masked(params, slots, jax.tree.leaves(zeros_like_params(leaves)))

        return SnellaState(zeros(), zeros(), keep(jnp.zeros((), jnp.int32)))

    def follow(look: Look, state: SnellaState, slots: PyTree) -> tuple[list[Any], list[Any]]:
        keep1, keep2 = value_at(b1, look.step), value_at(b2, look.step)
        columns = masked_leaves(
            slots, look.params, look.grads, state.sensitivity, state.uncertainty
        )
        means, spreads = [], []
        for p, g, mean, spread in zip(*columns, strict=True):
            found = jnp.abs(upcast(g) * upcast(p))
            means.append(keep1 * mean + (1.0 - keep1) * found)
            spreads.append(keep2 * spread + (1.0 - keep2) * jnp.abs(found - means[-1]))
        return means, spreads

    def mask(state: SnellaState, look: Look) -> tuple[PyTree, SnellaState]:
        slots = active(look.params)
        means, spreads = follow(look, state, slots)
        kept = jax.tree.leaves(look.kept)
        if not means:
            return look.kept, state

        def choose() -> list[jax.Array]:
            # Of squares of small numbers little is left in float32; roots have the same order.
            scores = [jnp.sqrt(a) * jnp.sqrt(b) for a, b in zip(means, spreads, strict=True)]
            most = jnp.maximum(jnp.max(jnp.stack([jnp.max(x) for x in scores])), 1e-30)
            worth = jnp.stack([jnp.mean(jnp.square(x / most)) for x in scores])
            total = jnp.sum(worth)
            parts = jnp.where(total > 0, worth / jnp.where(total > 0, total, 1.0), 1 / len(scores))
            share = snella_share(look.step, initial, target, begin, end)
            sizes = np.array([x.size for x in scores])
            wanted = jnp.round(share * float(sizes.sum()) * parts)
            counts = jnp.clip(wanted, 1, sizes).astype(jnp.int32)
            return largest_of_each(scores, [counts[i] for i in range(len(scores))])

        masks = jax.lax.cond(look.step % interval == 0, choose, lambda: kept)
        first, second = (at_masked(look.params, slots, x) for x in (means, spreads))
        state = SnellaState(first, second, keep(look.step))
        return at_masked(look.params, slots, masks), state

    return Policy("snella", active, mask, init, due=True, needs_gradients=True)
