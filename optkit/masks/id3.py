"""ID3: a budget of entries, unmasked step by step where a step gains most."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit._calls import cached_factory
from optkit.linalg.largest import MOST, largest_of
from optkit.masks.policy import (
    Active,
    Keep,
    Look,
    Policy,
    Rest,
    at_masked,
    check_keep,
    count_of,
    masked_leaves,
    scope,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.tree import PyTree, RuleLike, Selector, upcast

__all__ = ["Id3State", "id3"]


class Id3State(NamedTuple):
    """What the policy ``id3`` keeps."""

    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last choice


@cached_factory
def id3(
    budget: Keep | jax.Array,
    steps: int | jax.Array,
    *,
    exp: ScalarOrSchedule = 0.5,
    eps: ScalarOrSchedule = 1e-3,
    where: Selector = "**",
    rest: Rest = "freeze",
    roles: Sequence[RuleLike] = (),
) -> Policy:
    """Unmasks the entries with the largest gradients, for their weight, a few more at each step.

    At step ``t``, counted from 0, over all masked leaves together:

    1. ``score = |g| / (eps + |p|)**exp`` of entries that do not train yet;
    2. the ``budget // steps`` largest of them begin to train, one more at the first
       ``budget % steps`` steps. From step ``steps`` on nothing changes.

    Masks only grow. One cutoff serves all leaves, found by counting: sums and no sort.

    Args:
      budget: entries that train in the end: a number, or a share of all that are masked.
      steps: over how many steps they are unmasked.
      exp: how much small weights are preferred: 0 looks at gradients alone.
      eps: added to the weight.
      where: leaves that are masked.
      rest: what becomes of other leaves, "train" or "freeze".
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A policy for ``optkit.update_mask``, with the states "zero", which is the paper's, or "hold",
      which here is the same; it keeps nothing.

    Raises:
      ValueError: an option out of range; at init a budget larger than the masked leaves.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.update_mask(optax.sgd(1.0), optkit.masks.id3(2, 2), state="zero")
      >>> params, g = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, 3.0, 2.0])}
      >>> u, state = tx.update(g, tx.init(params), params)
      >>> u["w"].tolist(), tx.update(g, state, params)[0]["w"].tolist()
      ([0.0, -3.0, 0.0], [0.0, -3.0, -2.0])

    Reference:
      Step-by-Step Unmasking, arXiv 2408.14470. Its code resolves equal scores by masking the first
      trained entries of a leaf again; here they stay.
    """
    if not isinstance(budget, jax.Array):  # a number that was injected
        check_keep("budget", budget)
    if not isinstance(steps, jax.Array):
        check_static_int("steps", steps)
    check_number("exp", exp, low=0.0)
    check_number("eps", eps, low=0.0)
    area = scope(where, rest, roles)

    def total(params: PyTree) -> Any:
        size = sum(
            math.prod(np.shape(leaf))
            for leaf, on in zip(jax.tree.leaves(params), area.masked(params), strict=True)
            if on
        )
        if isinstance(budget, jax.Array):
            share = jnp.issubdtype(budget.dtype, jnp.inexact)
            wanted = jnp.round(budget * size) if share else budget
            return jnp.clip(wanted, 1, size).astype(jnp.int32)
        if isinstance(budget, float) and budget * size > MOST:
            raise ValueError(f"budget={budget} of {size} entries is more than {MOST}")
        return count_of("budget", budget, size, "all masked leaves together") if size else 0

    def active(params: PyTree) -> PyTree:
        total(params)  # to refuse a budget that is too large
        return area.active(params, lambda path, leaf: Active(tuple(np.shape(leaf)), None))

    def mask(state: PyTree, look: Look) -> tuple[PyTree, Id3State]:
        del state
        slots = active(look.params)
        leaves, grads, kept = masked_leaves(slots, look.params, look.grads, look.kept)
        offset, power = value_at(eps, look.step), value_at(exp, look.step)

        def score(p: jax.Array, g: jax.Array) -> jax.Array:
            below = (offset + jnp.abs(upcast(p))) ** power
            return jnp.abs(upcast(g)) / jnp.where(below > 0, below, 1.0)

        whole = total(look.params)
        number = whole // steps + (look.step < whole % steps)
        scores = [score(p, g) for p, g in zip(leaves, grads, strict=True)]
        new = largest_of(scores, number, [~old for old in kept])
        masks = [old | more for old, more in zip(kept, new, strict=True)]
        return at_masked(look.params, slots, masks), keep(look.step)

    def keep(step: Any) -> Id3State:
        return Id3State(recorded(step, exp=exp, eps=eps))

    due: Any = lambda step: step < steps  # noqa: E731
    begin = lambda params: keep(jnp.zeros((), jnp.int32))  # noqa: E731
    return Policy("id3", active, mask, begin, due, needs_gradients=True)
