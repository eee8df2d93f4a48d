"""A buffer that steps when enough clients have reported, however late each is."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.aggregate.base import (
    Aggregate,
    Aggregated,
    Fold,
    Reports,
    folded,
    over_clients,
    ratio,
    weighted_sum,
    zeros_for,
)
from optkit.aggregate.checks import check_leaves
from optkit.aggregate.staleness import StalenessWeight, check_staleness_weight, polynomial_staleness
from optkit.catalogue import register
from optkit.distributed.workers import AxisName, as_varying, check_axis_name
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import PyTree, zeros_like_params


class BufferState(NamedTuple):
    """State of ``fedbuff``."""

    total: PyTree  # like params, float32: sums since the last step
    weight: jax.Array  # float32 scalar, of the reports in it
    reports: jax.Array  # int32 scalar, how many


class _Round(NamedTuple):
    held: BufferState
    more: BufferState


@register(
    kind="aggregate",
    family="federated",
    paper=(
        "Federated Learning with Buffered Asynchronous Aggregation",
        "2106.06639",
        2022,
    ),
    state_bytes={"*": 4},
    tags=("federated", "asynchronous", "buffer", "stale"),
    chain="sum(w s(staleness) D) until enough have come",
    example={"size": 3},
)
def fedbuff(
    size: int,
    *,
    reduce: Literal["sum", "mean"] = "sum",
    staleness_weight: StalenessWeight | None = None,
    axis_name: AxisName = None,
) -> Aggregate:
    """Gathers reports of any round, and steps once so many have come.

    1. ``b <- b + sum(w_i*s(t_i)*D_i)`` over the present, ``t_i`` the staleness of each;
    2. with ``size`` reports in ``b`` or more: ``D = b`` ("sum") or ``D = b/sum(w_i)`` ("mean"),
       ``b <- 0``; with fewer nothing moves.

    With ``size=1``, "sum" and ``constant_staleness()`` it is a plain weighted sum, what the weights
    of ``optkit.async_weights`` ask for; with momentum, of which late reports have less, that is
    ``optkit.federated.weighted_momentum``. Reports are added as they are:
    ``optkit.aggregate.finite_clients`` tells which are finite.

    Args:
      size: how many reports make a step. All reports of one call are taken together: what is beyond
        ``size`` is in the same step.
      reduce: see above; FLSim's default is "sum", so that ``size`` is a part of the rate.
      staleness_weight: such as ``optkit.federated.polynomial_staleness(1.0)``; None is
        ``polynomial_staleness(0.5, average=0)``, the paper's.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.

    Returns:
      An ``optkit.aggregate.Aggregate`` that reads ``staleness``. State bytes: 4 per parameter;
      clients can come in chunks.

    Raises:
      ValueError: an option out of range.
      TypeError: ``staleness_weight`` is no function.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.fedbuff(2)
      >>> state = rule.init(jnp.zeros(1), 2)
      >>> for late in (0, 3):
      ...   out = rule.apply(jnp.array([[4.0]]), state, staleness=[late])
      ...   state = out.state
      ...   print(out.direction.tolist(), bool(out.moved))
      [0.0] False
      [6.0] True

    Reference:
      Nguyen et al., arXiv 2106.06639, Algorithm 1 with "mean"; FLSim's code for "sum". FLSim's
      weighted average divides by ``sum(w_i*s_i)``, and its trainer steps once more at the end of an
      epoch, with fewer reports. No recorded run: its code does not import on Python 3.11.
    """
    check_static_int("size", size)
    check_choice("reduce", reduce, ("sum", "mean"))
    check_axis_name(axis_name)
    check_staleness_weight(staleness_weight)
    weigh = polynomial_staleness(0.5, average=0.0) if staleness_weight is None else staleness_weight

    def init(params: PyTree, clients: int) -> BufferState:
        del clients
        total = zeros_like_params(params)
        return BufferState(total, jnp.zeros(()), jnp.zeros((), jnp.int32))

    def start(one: PyTree, state: BufferState) -> _Round:
        check_leaves(one, state.total, "state", name="one client's displacement", leading=False)
        numbers = as_varying((jnp.zeros(()), jnp.zeros((), jnp.int32)), axis_name)
        return _Round(state, BufferState(zeros_for(one, axis_name), *numbers))

    def add(carry: _Round, given: Reports) -> _Round:
        late = jnp.zeros_like(given.client) if given.staleness is None else given.staleness
        weight = jnp.where(given.present, given.weight, 0.0)
        sums = weighted_sum(jnp.where(given.present, weight * weigh(late), 0.0), given.displacement)
        here = jnp.sum(given.present, dtype=jnp.int32)
        more = BufferState(sums, jnp.sum(weight), here)
        return carry._replace(more=jax.tree.map(jnp.add, carry.more, more))

    def finish(carry: _Round) -> Aggregated:
        all_sums = jax.tree.map(
            lambda old, new: old + new.astype(old.dtype),
            carry.held,
            over_clients(carry.more, axis_name),
        )
        full = all_sums.reports >= size
        sums = all_sums.total if reduce == "sum" else ratio(all_sums.total, all_sums.weight)
        direction = jax.tree.map(lambda x: jnp.where(full, x, 0.0), sums)
        state = jax.tree.map(lambda x: jnp.where(full, jnp.zeros_like(x), x), all_sums)
        return Aggregated(direction, state, full)

    return folded(init, Fold(start, add, finish), axis_name, "fedbuff")
