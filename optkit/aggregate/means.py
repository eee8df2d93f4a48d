"""The weighted mean of what the present clients report."""

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
from optkit.tree import PyTree


class _Sums(NamedTuple):
    total: PyTree
    weight: jax.Array


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

    def start(one: PyTree, state: PyTree) -> _Sums:
        del state
        return _Sums(zeros_for(one, axis_name), as_varying(jnp.zeros(()), axis_name))

    def add(sums: _Sums, given: Reports) -> _Sums:
        weight = jnp.where(given.present, given.weight, 0.0)
        more = weighted_sum(weight, given.displacement)
        return _Sums(jax.tree.map(jnp.add, sums.total, more), sums.weight + jnp.sum(weight))

    def finish(sums: _Sums) -> Aggregated:
        total, weight = over_clients(sums, axis_name)
        return Aggregated(ratio(total, weight), (), weight > 0)

    return folded(lambda params, clients: (), Fold(start, add, finish), axis_name, "mean")
