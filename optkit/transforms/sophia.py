"""Momentum divided by a diagonal of the curvature that is refreshed now and then, and clipped."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.curvature import Estimate, constant
from optkit.transforms.base import Transformation, check_gradients, map_leaves, unzip
from optkit.transforms.estimates import choose_estimate, follow_if_due
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree, upcast, zeros_like_params

PAPER = (
    "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training",
    "2305.14342",
    2023,
)


class ScaleBySophiaState(NamedTuple):
    """State of ``scale_by_sophia``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    momentum: PyTree  # like params, state_dtype (float32 for 16-bit parameters)
    curvature: PyTree  # the same, average of the estimates
    key: jax.Array  # threefry PRNG key, constant
    win_rate: jax.Array | None  # float32 scalar, share of entries not clipped; None if not asked
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _divisor(curved: jax.Array, least: Scalar, mode: str) -> jax.Array:
    return jnp.maximum(curved, 0.0) + least if mode == "add" else jnp.maximum(curved, least)


def _clipped(m: jax.Array, under: jax.Array, limit: Scalar) -> tuple[jax.Array, jax.Array]:
    """Quotients no larger than the limit, and which are smaller: compared before they overflow."""
    inside = jnp.abs(m) < limit * under
    return jnp.where(inside, m / under, jnp.sign(m) * limit), inside


def _share(inside: PyTree) -> jax.Array:
    """The share of true entries in a tree."""
    leaves = [x for x in jax.tree.leaves(inside) if x.size]
    total = sum((jnp.sum(x, dtype=jnp.float32) for x in leaves), jnp.zeros(()))
    return jnp.asarray(total / max(1, sum(x.size for x in leaves)), jnp.float32)


@register(
    kind="part",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("second order", "hessian", "diagonal"),
    chain="clip(m / max(gamma h, eps)); h <- b2 h + (1-b2) curvature every k steps",
    example={"curvature": constant()},
)
def scale_by_sophia(
    b1: ScalarOrSchedule = 0.965,
    b2: ScalarOrSchedule = 0.99,
    *,
    gamma: ScalarOrSchedule = 0.01,
    eps: ScalarOrSchedule = 1e-8,
    clip: ScalarOrSchedule | None = 1.0,
    every: int | None = None,
    first: int | None = None,
    refresh: Literal["before", "after"] = "after",
    debias_momentum: bool = True,
    eps_mode: Literal["max", "add"] = "max",
    curvature: Estimate | None = None,
    monitor: bool = False,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides the momentum by an average of curvature, and clips each entry.

    In update ``t``, counted from 0, with ``due = t >= first and (t - first) % every == 0``:

    1. if ``due`` and ``refresh="before"``: ``h <- b2*h + (1-b2)*curvature(params)``;
    2. ``m <- b1*m + (1-b1)*g``, divided by ``1-b1**(t+1)`` where it is used if debiased;
    3. ``u = clip(m/max(gamma*h, eps), -c, c)``; with ``eps_mode="add"``
       ``u = clip(m/(max(gamma*h, 0) + eps), -c, c)``;
    4. if ``due`` and ``refresh="after"``: ``h <- b2*h + (1-b2)*curvature(params)``.

    The extra argument ``curvature`` is an estimate ``(params, key) -> tree``, which runs inside
    ``lax.cond`` so that only steps that are due pay for it (see ``optkit.curvature``), or a tree
    like the updates. Without it comes the one given here, or Hutchinson's of the extra argument
    ``value_fn``, a function of the parameters as Optax's line searches take it. Entries of an
    estimate that are not finite leave ``h`` as it is. Where ``vmap`` gives each member a state of
    its own, XLA computes both sides of the condition in every step.

    Args:
      b1: decay rate of the momentum, in [0, 1).
      b2: decay rate of the curvature, in [0, 1).
      gamma: share of the curvature that divides; larger clips less.
      eps: least divisor.
      clip: largest entry of the update; None for no limit.
      every: updates from one refresh to the next; None for 10.
      first: number of the first update that refreshes, counted from 0; None for 0.
      refresh: whether a new curvature already acts in the update that computes it.
      debias_momentum: divide the momentum by the sum of its weights.
      eps_mode: as a maximum, or added.
      curvature: the estimate where update is given none; for ``optax.inject_hyperparams`` a static
        argument.
      monitor: keep the share of entries that are not clipped, the win rate; the paper wants 0.1 to
        0.5 of it. Read it with ``optax.tree.get(state, "win_rate")``.
      key: seed or PRNG key of the estimates; None for 0.
      state_dtype: dtype of ``m`` and ``h``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      two state_dtype numbers per parameter and a key.

    Raises:
      ValueError: an option out of range, no curvature, one of other leaves than the updates, or
        params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_sophia(0.0, 0.0, gamma=1.0, every=1, refresh="before")
      >>> g, h = {"w": jnp.array([3.0, -1.0])}, {"w": jnp.array([2.0, 4.0])}
      >>> tx.update(g, tx.init(g), g, curvature=h)[0]["w"].tolist()
      [1.0, -0.25]

    Reference:
      Liu et al., Sophia, arXiv 2305.14342. The paper refreshes before the step, levanter
      (``first=every-1``) and Optax (``first=0``) after it.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("gamma", gamma, low=0.0)
    check_number("eps", eps, low=1e-38)
    most = jnp.inf if clip is None else clip
    if clip is not None:
        check_number("clip", clip, low=0.0)
    every, first = 10 if every is None else every, 0 if first is None else first
    check_static_int("every", every)
    check_static_int("first", first, low=0)
    check_choice("refresh", refresh, ("before", "after"))
    check_choice("eps_mode", eps_mode, ("max", "add"))
    check_seed(key)
    own = curvature

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, b1=b1, b2=b2, gamma=gamma, eps=eps, clip=most)

    def init_fn(params: PyTree) -> ScaleBySophiaState:
        count = jnp.zeros((), jnp.int32)
        m, h = (zeros_like_params(params, state_dtype) for _ in range(2))
        rate = jnp.zeros((), jnp.float32) if monitor else None
        return ScaleBySophiaState(count, m, h, fresh_key(key), rate, record(count))

    def update_fn(
        updates: PyTree,
        state: ScaleBySophiaState,
        params: PyTree | None = None,
        *,
        curvature: Any = None,
        value_fn: Callable[[PyTree], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleBySophiaState]:
        del extra_args
        check_gradients(updates, params)
        count = state.count
        estimate = choose_estimate("scale_by_sophia", curvature, own, value_fn)
        held = follow_if_due(
            (count >= first) & ((count - first) % every == 0),
            state.curvature,
            estimate,
            params,
            jax.random.fold_in(state.key, count),
            decay=value_at(b2, count),
            like=updates,
            name="scale_by_sophia",
        )
        acting = held if refresh == "before" else state.curvature
        b, share, least = value_at(b1, count), value_at(gamma, count), value_at(eps, count)
        weight: Scalar = debias(b, count + 1) if debias_momentum else 1.0
        limit = value_at(most, count)

        def leaf(g: jax.Array, m: jax.Array, h: jax.Array) -> tuple[jax.Array, ...]:
            new = b * upcast(m) + (1.0 - b) * upcast(g)
            under = _divisor(share * upcast(h), least, eps_mode)
            u, inside = _clipped(new / weight, under, limit)
            return u.astype(g.dtype), new.astype(m.dtype), inside

        out, momentum, inside = unzip(updates, map_leaves(leaf, updates, state.momentum, acting), 3)
        rate = _share(inside) if monitor else None
        return out, ScaleBySophiaState(count + 1, momentum, held, state.key, rate, record(count))

    return Transformation(init_fn, update_fn)
