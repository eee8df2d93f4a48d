"""How often clients take part: known, equal, or estimated from how long they stayed away."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from optkit.aggregate.base import (
    Aggregate,
    Aggregated,
    Fold,
    Reports,
    folded,
    known_only,
    over_clients,
    weighted_sum,
    zeros_for,
)
from optkit.catalogue import register
from optkit.distributed.workers import (
    AxisName,
    PerWorker,
    as_varying,
    axes_of,
    check_axis_name,
    count_workers,
)
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.tree import PyTree

Numbers: TypeAlias = Sequence[float] | np.ndarray | jax.Array
Participation: TypeAlias = float | Numbers | Literal["estimated"]


class Attendance(NamedTuple):
    """What is known of how often each client takes part: three numbers a client.

    Attributes:
      weight: float32 (N,), the mean gap between two of its rounds, an estimate of ``1/p``.
      gaps: int32 (N,), how many gaps that is the mean of.
      since: int32 (N,), rounds since it was last there.
    """

    weight: jax.Array
    gaps: jax.Array
    since: jax.Array


def fresh_attendance(clients: int) -> Attendance:
    """Returns what is known before the first round: everybody counts once."""
    gaps, since = (jnp.zeros(clients, jnp.int32) for _ in range(2))
    return Attendance(jnp.ones(clients, jnp.float32), gaps, since)


def attended(known: Attendance, seen: jax.Array, longest: int | None) -> Attendance:
    """Returns what is known after a round; bool (N,) tells who was there."""
    since = known.since + 1
    ends = seen if longest is None else seen | (since >= longest)
    weight = known.weight + (since - known.weight) / (known.gaps + 1)
    return Attendance(
        jnp.where(ends, weight, known.weight),
        known.gaps + ends,
        jnp.where(ends, 0, since),
    )


def check_longest(longest: int | None) -> None:
    """Raises unless it is None or a number of rounds."""
    if longest is not None:
        check_static_int("longest", longest)


def per_client(name: str, values: Numbers | None, *, most: float | None = None) -> Any:
    """Returns positive numbers of clients as float64 (N,), or raises ValueError."""
    if values is None:
        return None
    out = np.asarray(values, np.float64)
    if out.ndim != 1 or out.size == 0 or not np.isfinite(out).all() or (out <= 0).any():
        raise ValueError(
            f"{name} must be one positive number for each client, shape (N,), not {values!r}"
        )
    if most is not None and out.max() > most:
        client = int(out.argmax())
        raise ValueError(f"{name}[{client}]={out[client]} is above {most}; give numbers in (0, 1]")
    return out


def probabilities(participation: Participation) -> float | np.ndarray | None:
    """Returns one probability for all or float64 (N,); None where they are estimated."""
    given: Any = participation
    if isinstance(given, str):
        check_choice("participation", given, ("estimated",))
        return None
    if isinstance(given, jax.Array) or np.ndim(given):
        return np.asarray(per_client("participation", given, most=1.0))
    check_number("participation", given, low=0.0, high=1.0, open_low=True)
    return float(given)


def own_numbers(name: str, values: Any, clients: int, axis_name: AxisName) -> jax.Array:
    """Returns the numbers of the clients of this device, float32 (clients,)."""
    total = clients * count_workers(axis_name)
    if len(values) != total:
        raise ValueError(
            f"{name} has {len(values)} numbers and there are {total} clients: give one for each"
        )
    whole = jnp.asarray(values, jnp.float32)
    if not axes_of(axis_name):
        return whole
    first = lax.axis_index(axes_of(axis_name)) * clients
    return lax.dynamic_slice_in_dim(whole, first, clients)


def shares_of(values: Any, clients: int, axis_name: AxisName) -> jax.Array:
    """Returns what part of all data each client of this device has, (clients,); equal for None."""
    if values is None:
        equal = jnp.full(clients, 1.0 / (clients * count_workers(axis_name)), jnp.float32)
        return as_varying(equal, axis_name)
    return own_numbers("shares", values / values.sum(), clients, axis_name)


def nobody(clients: int, axis_name: AxisName) -> jax.Array:
    """Returns bool (clients,) to which those that were there are added."""
    return as_varying(jnp.zeros(clients, bool), axis_name)


def rows_of(given: Reports, clients: int) -> jax.Array:
    """Returns where to write what clients sent; of an absent one beyond the last row."""
    return jnp.where(given.present, given.client, clients)


def mark(seen: jax.Array, given: Reports) -> jax.Array:
    """Adds those that are present."""
    return seen.at[rows_of(given, seen.shape[0])].set(True, mode="drop")


def anyone(seen: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether anybody was there, on any device."""
    return over_clients(jnp.sum(seen, dtype=jnp.int32), axis_name) > 0


def wrap(tree: PyTree, axis_name: AxisName) -> PyTree:
    """Marks what belongs to the clients of one device, where there are several."""
    return PerWorker(as_varying(tree, axis_name)) if axes_of(axis_name) else tree


def unwrap(node: PyTree) -> Any:
    """Returns what ``wrap`` was given."""
    return node.of_worker if isinstance(node, PerWorker) else node


class _Round(NamedTuple):
    total: PyTree
    known: Attendance
    seen: jax.Array


@register(
    kind="aggregate",
    family="federated",
    paper=(
        "A Lightweight Method for Tackling Unknown Participation Statistics in Federated Averaging",
        "2306.03401",
        2023,
    ),
    state_bytes={"*": 0},
    tags=("federated", "participation", "unbiased"),
    chain="sum(a w D) over the present, w the mean gap between a client's rounds",
)
def fedau(
    longest: int | None = None,
    *,
    shares: Numbers | None = None,
    axis_name: AxisName = None,
) -> Aggregate:
    """A sum over present clients in which those that come rarely count as much as they are missed.

    1. ``D = sum(a_i*w_i*D_i)`` over the present, ``a_i`` the share of client i in all data;
    2. for every client ``s_i <- s_i + 1``;
    3. for those that are present, or away for ``longest`` rounds: ``w_i <- (n_i*w_i + s_i)/(n_i +
       1)``, ``n_i <- n_i + 1``, ``s_i <- 0``.

    ``w_i`` starts at 1 and becomes the mean gap between two rounds of client i, an estimate of one
    over its probability of taking part, from rounds before this one. The mean of what is present
    instead leans to those that come often. A round without anybody moves nothing, but counts.
    Reports are added as they are: ``optkit.aggregate.finite_clients`` tells which are finite.

    Evidence: what knowing everybody's participation would give is the paper's claim. In
    ``python -m benchmarks.claims federated``, digits whose labels 0 to 4 come in nine of ten rounds
    and the others in one, it ends at 0.057, where the mean of who comes has 0.091, and one of
    everybody 0.060.

    Args:
      longest: rounds after which a gap is ended though nobody came, a bound of ``w_i`` that makes
        it less variable and biased; about 50 in the paper; None never ends one.
      shares: (N,) of any positive scale, such as numbers of examples; equal if None. Weights of
        single reports are not read: a client's share counts where it is absent too.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, the same number
        on each device, where ``client`` counts from 0; None for all on a leading axis.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 12 a client; clients can come in chunks.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.fedau()
      >>> state = rule.init(jnp.zeros(1), 2)
      >>> for second in (False, True, True):
      ...   out = rule.apply(jnp.array([[2.0], [4.0]]), state, present=[True, second])
      ...   state = out.state
      ...   print(out.direction.tolist())
      [1.0]
      [3.0]
      [5.0]

    Reference:
      Wang and Ji, arXiv 2306.03401, Algorithm 2; shares as in the code of FedStale.
    """
    check_longest(longest)
    check_axis_name(axis_name)
    given_shares = per_client("shares", shares)

    def init(params: PyTree, clients: int) -> PyTree:
        del params
        shares_of(given_shares, clients, axis_name)  # their number is checked
        return wrap(fresh_attendance(clients), axis_name)

    def start(one: PyTree, state: PyTree) -> _Round:
        known = unwrap(state)
        clients = known.weight.shape[0]
        return _Round(zeros_for(one, axis_name), known, nobody(clients, axis_name))

    def add(carry: _Round, given: Reports) -> _Round:
        given = known_only(given, carry.seen.shape[0])
        weight = carry.known.weight * shares_of(given_shares, carry.seen.shape[0], axis_name)
        own = jnp.where(given.present, weight[given.client], 0.0)
        more = weighted_sum(own, given.displacement)
        total = jax.tree.map(jnp.add, carry.total, more)
        return carry._replace(total=total, seen=mark(carry.seen, given))

    def finish(carry: _Round) -> Aggregated:
        state = wrap(attended(carry.known, carry.seen, longest), axis_name)
        direction = over_clients(carry.total, axis_name)
        return Aggregated(direction, state, anyone(carry.seen, axis_name))

    fold = Fold(start, add, finish)
    return folded(init, fold, axis_name, "fedau", lambda state: unwrap(state).weight.shape[0])
