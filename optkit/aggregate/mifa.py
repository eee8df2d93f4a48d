"""MIFA: the mean of what every client sent last, whoever is there."""

import jax.numpy as jnp

from optkit.aggregate.base import (
    Aggregate,
    Aggregated,
    Fold,
    Reports,
    folded,
    over_clients,
    weighted_sum,
)
from optkit.aggregate.participation import Numbers, per_client, shares_of, unwrap, wrap
from optkit.aggregate.rows import check_rows, count_rows, remembered, written, zeros_of_all
from optkit.catalogue import register
from optkit.distributed.workers import AxisName, as_varying, check_axes
from optkit.tree import PyTree


@register(
    kind="aggregate",
    family="federated",
    paper=(
        "Fast Federated Learning in the Presence of Arbitrary Device Unavailability",
        "2106.04159",
        2021,
    ),
    state_bytes={"*": 4},
    tags=("federated", "memory", "unavailable"),
    chain="h <- D for the present; sum(a h) over all",
)
def mifa(
    *,
    shares: Numbers | None = None,
    axis_name: AxisName = None,
    coordinates_axis: AxisName = None,
) -> Aggregate:
    """The mean of what every client sent last, be it present or not.

    1. ``h_i <- D_i`` for the present; 2. ``D = sum(a_i*h_i)`` over all, ``a_i`` the share of client
    i in all data.

    Who reports a number that is not finite counts as absent, and keeps what it sent before.

    It takes nothing for granted about who comes when; a client that never came counts as 0. Rounds
    without anybody move like others, along the memory.

    Args:
      shares: (N,) of any positive scale, such as numbers of examples; equal if None. Weights of
        single reports are not read: a client's share counts where it is absent too.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, the same number
        on each device, where ``client`` counts from 0; None for all on a leading axis.
      coordinates_axis: see ``optkit.aggregate.fedvarp``.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 4 per parameter and client; clients can come
      in chunks.

    Raises:
      ValueError: shares that are not positive, or of another number of clients; in a
        round, leaves that vary along an axis without a name here.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.mifa()
      >>> state = rule.init(jnp.zeros(1), 2)
      >>> for present in ([True, False], [False, True], [False, False]):
      ...   out = rule.apply(jnp.array([[2.0], [6.0]]), state, present=present)
      ...   state = out.state
      ...   print(out.direction.tolist())
      [1.0]
      [4.0]
      [4.0]

    Reference:
      Gu et al., arXiv 2106.04159, which waits for all clients before its first step; the recorded
      runs (IBM/fedau) do not, nor does this.
    """
    check_axes(axis_name, coordinates_axis)
    given_shares = per_client("shares", shares)

    def init(params: PyTree, clients: int) -> PyTree:
        shares_of(given_shares, clients, axis_name)  # their number is checked
        return wrap(zeros_of_all(params, clients), axis_name)

    def start(one: PyTree, state: PyTree) -> PyTree:
        check_rows(one, unwrap(state))
        return as_varying(unwrap(state), axis_name)

    def add(last: PyTree, given: Reports) -> PyTree:
        return written(
            last, remembered(given, count_rows(last), axis_name, coordinates_axis, "mifa")
        )

    def finish(last: PyTree) -> Aggregated:
        shares = shares_of(given_shares, count_rows(last), axis_name)
        direction = over_clients(weighted_sum(shares, last), axis_name)
        state = wrap(last, axis_name)
        return Aggregated(direction, state, jnp.ones((), bool))

    fold = Fold(start, add, finish)
    return folded(init, fold, axis_name, "mifa", lambda state: count_rows(unwrap(state)))
