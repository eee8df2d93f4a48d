"""The weighted mean of what the present clients report, and the vote of their signs."""

from collections.abc import Callable
from typing import NamedTuple

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
from optkit.catalogue import register
from optkit.distributed.workers import AxisName, as_varying, check_axis_name
from optkit.tree import PyTree, upcast


class _Sums(NamedTuple):
    total: PyTree
    weight: jax.Array


def _from_none(axis_name: AxisName) -> Callable[[PyTree, PyTree], _Sums]:
    def start(one: PyTree, state: PyTree) -> _Sums:
        del state
        return _Sums(zeros_for(one, axis_name), as_varying(jnp.zeros(()), axis_name))

    return start


def _add(sums: _Sums, given: Reports) -> _Sums:
    weight = jnp.where(given.present, given.weight, 0.0)
    more = weighted_sum(weight, given.displacement)
    return _Sums(jax.tree.map(jnp.add, sums.total, more), sums.weight + jnp.sum(weight))


def _vote(x: jax.Array) -> jax.Array:
    # One NaN would spoil the sum of all.
    return jnp.where(jnp.isnan(x), 0.0, jnp.sign(upcast(x)))


@register(
    kind="aggregate",
    family="federated",
    paper=(
        "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        "1602.05629",
        2016,
    ),
    state_bytes={"*": 0},
    tags=("federated", "mean", "fedavg"),
    chain="sum(w D)/sum(w) over the present",
)
def mean(*, axis_name: AxisName = None) -> Aggregate:
    """The weighted mean of what the present clients report.

    ``D = sum(w_i*D_i)/sum(w_i)`` over the present; a round without any moves nothing. Reports are
    added as they are: ``optkit.aggregate.finite_clients`` tells which are finite.

    FedAvg is ``optkit.server_step(optkit.aggregate.mean(), optax.sgd(1.0))`` with numbers of
    examples for weights.

    Args:
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 0; clients can come in chunks.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.mean()
      >>> state = rule.init(jnp.zeros(1), 3)
      >>> sent = jnp.array([[1.0], [5.0], [jnp.nan]])
      >>> out = rule.apply(sent, state, weight=[3, 1, 9], present=[True, True, False])
      >>> out.direction.tolist()
      [2.0]

    Reference:
      McMahan et al., arXiv 1602.05629.
    """
    check_axis_name(axis_name)

    def finish(sums: _Sums) -> Aggregated:
        total, weight = over_clients(sums, axis_name)
        return Aggregated(ratio(total, weight), (), weight > 0)

    return folded(
        lambda params, clients: (), Fold(_from_none(axis_name), _add, finish), axis_name, "mean"
    )


@register(
    kind="aggregate",
    family="robust",
    paper=(
        "signSGD with Majority Vote is Communication Efficient And Fault Tolerant",
        "1810.05291",
        2018,
    ),
    state_bytes={"*": 0},
    tags=("federated", "robust", "byzantine", "sign", "vote"),
    chain="sign(sum(w sign(D))) over the present",
)
def majority_vote(*, axis_name: AxisName = None) -> Aggregate:
    """The sign that most of the present clients report, coordinate by coordinate.

    ``D_k = sign(sum_i(w_i*sign(D_ik)))`` over the present: -1 or 1, and 0 where the votes tie. Who
    reports 0 or NaN at a coordinate does not vote on it. A round without any moves nothing.

    Where all honest clients agree no minority turns their sign round, whatever it sends; "minority"
    is by weight. Weights that clients name themselves give a hostile one its majority: leave them
    out, and all count as one. Sums of other weights than integers are rounded, so that a tie may
    come out as a sign.

    signSGD with majority vote is ``optkit.server_step(optkit.aggregate.majority_vote(),
    optax.sgd(lr))`` on gradients; Signum is the same on momentum that each client keeps. The vote
    of clients that report the same is ``optkit.signsgd`` of one of them. ``optkit.signsgd`` as the
    server's optimizer changes no sign, and has weight decay.

    Args:
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 0; clients can come in chunks. Along
      ``axis_name``: an all-reduce of the sums.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.majority_vote()
      >>> sent = jnp.array([[0.1, 2.0, 0.0], [0.3, -2.0, 0.0], [-1e9, jnp.nan, -0.5]])
      >>> rule.apply(sent, rule.init(jnp.zeros(3), 3)).direction.tolist()
      [1.0, 0.0, -1.0]

    Reference:
      Bernstein et al., arXiv 1810.05291. There each client and the server send one bit for each
      coordinate; here the votes are summed in float32 or better. The paper has no weights, and
      says nothing of ties.
    """
    check_axis_name(axis_name)

    def add(sums: _Sums, given: Reports) -> _Sums:
        return _add(sums, given._replace(displacement=jax.tree.map(_vote, given.displacement)))

    def finish(sums: _Sums) -> Aggregated:
        total, weight = over_clients(sums, axis_name)
        return Aggregated(jax.tree.map(jnp.sign, total), (), weight > 0)

    return folded(
        lambda params, clients: (),
        Fold(_from_none(axis_name), add, finish),
        axis_name,
        "majority_vote",
    )
