"""Rules that choose among clients by their distances: Krum, Multi-Krum, Bulyan."""

from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from optkit.aggregate.base import Aggregate, Aggregated, Reports, weighted_sum
from optkit.aggregate.robust import memoryless
from optkit.aggregate.vectors import all_vectors, column, in_order, middle
from optkit.catalogue import register
from optkit.distributed.workers import AxisName, as_varying, check_axes
from optkit.transforms.hyperparams import check_choice, check_static_int
from optkit.tree import PyTree

Dialect = Literal["flower", "epfl"]
KRUM = (
    "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
    "1703.02757",
    2017,
)


def scores(
    distances: jax.Array, candidates: jax.Array, count: jax.Array, hostile: int
) -> jax.Array:
    """Returns sums of the distances to the ``count - hostile - 2`` nearest other candidates.

    Args:
      distances: (W, W); what is not finite is infinitely far.
      candidates: bool (W,).
      count: how many candidates there are.
      hostile: f.

    Returns:
      (W,), infinite for what is none.
    """
    size = candidates.shape[0]
    pairs = candidates[:, None] & candidates[None, :] & ~jnp.eye(size, dtype=bool)
    pairs &= ~jnp.isnan(distances)
    # A last candidate has no others: it costs nothing, if it is finite.
    readable = candidates & jnp.isfinite(jnp.diagonal(distances))
    ordered = jnp.sort(jnp.where(pairs, distances, jnp.inf), axis=1)
    number = jnp.minimum(jnp.maximum(count - hostile - 2, 1), count - 1)
    nearest = jnp.arange(size)[None, :] < number
    total = jnp.sum(jnp.where(nearest, ordered, 0.0), axis=1)
    return jnp.where(readable, total, jnp.inf)


def _best(
    hostile: int,
    keep: int,
    dialect: Dialect,
    axis_name: AxisName,
    coordinates_axis: AxisName,
    who: str,
) -> Aggregate:
    """The aggregate of the ``keep`` clients of the lowest scores."""
    check_static_int("hostile", hostile, low=0)
    check_choice("dialect", dialect, ("flower", "epfl"))
    check_axes(axis_name, coordinates_axis)
    # The code allows one client less than the proof.
    least = max(2 * hostile + (2 if dialect == "epfl" else 3), keep + hostile)
    why = f"hostile={hostile}" + (f", keep={keep}" if keep > 1 else "")

    def combine(state: PyTree, given: Reports) -> Aggregated:
        v = all_vectors(given, axis_name, who, least, why, coordinates_axis)
        distances = v.distances()
        if dialect == "epfl":
            distances = jnp.square(distances)
        score = scores(distances, v.present, v.count, hostile)
        order = v.ranking(score)[:keep]
        moved = (v.count >= least) & jnp.isfinite(score[order[-1]])
        each = 1.0 if dialect == "epfl" else 1.0 / keep
        weight = jnp.where(moved, jnp.zeros_like(score).at[order].set(each), 0.0)
        return v.settled(weighted_sum(weight, v.tree), state, moved)

    return Aggregate(memoryless, combine)


@register(
    kind="aggregate",
    family="robust",
    paper=KRUM,
    state_bytes={"*": 0},
    tags=("federated", "robust", "byzantine", "krum"),
    chain="argmin_i(sum of |D_i - D_j|^2 over the nearest others)",
    example={"hostile": 1},
)
def krum(
    *,
    hostile: int,
    dialect: Dialect = "flower",
    axis_name: AxisName = None,
    coordinates_axis: AxisName = None,
) -> Aggregate:
    """Krum: what that client reports which lies nearest to the others.

    1. ``s_i = sum of |D_i - D_j|^2`` over the ``W - hostile - 2`` nearest others, norms over the
       whole tree, W of the present ones.
    2. ``D = D_i`` of the lowest ``s_i``, of equal ones that of the lowest number of a client.

    A vector that is not finite is infinitely far from all. A round with fewer than 2*hostile + 3
    present ones, or with so many such vectors that no score is finite, moves nothing. Weights are
    not used.

    Evidence: in ``python -m benchmarks.claims robust``, digits with two hostile workers of nine,
    errors are 1.8% where these reverse gradients (the mean: 100%), and 1.9%, the fewest of all
    rules, where they hide within the others' spread (the mean: 44.3%).

    Args:
      hostile: f, how many clients may be.
      dialect: ``"epfl"`` squares distances twice as the code of Karimireddy et al. does, and runs
        from 2*hostile + 2 clients on.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.
      coordinates_axis: a mesh axis inside ``jax.shard_map`` that leaves are cut along, or several:
        norms are summed over it. Types tell which leaves are cut and which are whole
        (``check_vma=True``, the default). None: leaves are whole, and others are refused. (): they
        are not, and each device has a server of its own.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 0; it needs all vectors at once. Coordinates
      sharded and clients not: an all-reduce of (W, W). Along ``axis_name``: the same, an exchange
      that gives each device all clients' values of its share of the coordinates, and a gather.

    Raises:
      ValueError: ``hostile`` below 0, another dialect, one axis for clients and coordinates; in a
        round, fewer clients than it needs, leaves that vary along an axis that neither names, or
        no types that tell which are cut.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.krum(hostile=1)
      >>> sent = jnp.array([[0.5], [1.0], [2.0], [1.25], [jnp.inf]])
      >>> rule.apply(sent, rule.init(jnp.zeros(1), 5)).direction.tolist()
      [1.0]

    Reference:
      Blanchard et al., arXiv 1703.02757.
    """
    return _best(hostile, 1, dialect, axis_name, coordinates_axis, "krum")


@register(
    kind="aggregate",
    family="robust",
    paper=KRUM,
    state_bytes={"*": 0},
    tags=("federated", "robust", "byzantine", "krum", "mean"),
    chain="mean of the keep clients of the lowest scores of krum",
    example={"hostile": 1, "keep": 3},
)
def multi_krum(
    *,
    hostile: int,
    keep: int,
    dialect: Dialect = "flower",
    axis_name: AxisName = None,
    coordinates_axis: AxisName = None,
) -> Aggregate:
    """Multi-Krum: the mean of what those clients report that lie nearest to the others.

    1. ``s_i`` as ``optkit.aggregate.krum`` has it.
    2. ``D = mean(D_i)`` of the ``keep`` lowest ``s_i``.

    A vector that is not finite is infinitely far from all. A round with fewer present ones than
    2*hostile + 3 or keep + hostile, or with so many such vectors that fewer than ``keep`` scores
    are finite, moves nothing. Weights are not used: a hostile client would choose its own.

    Evidence: in ``python -m benchmarks.claims robust``, digits with two hostile workers of nine,
    errors are 1.7% where these reverse gradients (the mean: 100%), and 3.8% where they hide within
    the others' spread (the mean: 44.3%).

    Args:
      hostile: f, how many clients may be.
      keep: m, how many to average.
      dialect: ``"epfl"`` squares distances twice and returns the sum as the code of Karimireddy
        et al. does, and runs from 2*hostile + 2 clients on.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.
      coordinates_axis: see ``optkit.aggregate.krum``.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 0; communication as ``krum``.

    Raises:
      ValueError: ``hostile`` below 0, ``keep`` below 1, another dialect; in a round, fewer clients
        than it needs; axes as ``krum``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.multi_krum(hostile=1, keep=2)
      >>> sent = jnp.array([[0.5], [1.0], [2.0], [1.25], [jnp.inf]])
      >>> rule.apply(sent, rule.init(jnp.zeros(1), 5)).direction.tolist()
      [1.125]

    Reference:
      Blanchard et al., arXiv 1703.02757. Flower weighs the chosen by their numbers of examples.
    """
    check_static_int("keep", keep)
    return _best(hostile, keep, dialect, axis_name, coordinates_axis, "multi_krum")


@register(
    kind="aggregate",
    family="robust",
    paper=("The Hidden Vulnerability of Distributed Learning in Byzantium", "1802.07927", 2018),
    state_bytes={"*": 0},
    tags=("federated", "robust", "byzantine", "krum", "median"),
    chain="krum again and again > mean of the values nearest to the median",
    example={"hostile": 1},
)
def bulyan(
    *, hostile: int, axis_name: AxisName = None, coordinates_axis: AxisName = None
) -> Aggregate:
    """Bulyan: Krum chooses clients, and each coordinate is the mean of its most central values.

    1. ``theta = W - 2*hostile`` times, of the W present ones: the choice of
       ``optkit.aggregate.krum`` among the clients that are left is put aside.
    2. By coordinate, the mean of the ``theta - 2*hostile`` values nearest to the median of those
       put aside.

    A vector that is not finite is infinitely far from all. A round with fewer than 4*hostile + 3
    present ones, or with more than ``hostile`` such vectors, may move nothing. Weights are not
    used.

    Evidence: in ``python -m benchmarks.claims robust``, digits with two hostile workers of eleven,
    errors are 2.1% where these reverse gradients (the mean of nine: 100%), and 2.7% where they hide
    within the others' spread (the mean: 44.3%).

    Args:
      hostile: f, how many clients may be.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.
      coordinates_axis: see ``optkit.aggregate.krum``.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 0; communication as ``krum``.

    Raises:
      ValueError: ``hostile`` below 0; in a round, fewer than 4*hostile + 3 clients; axes as
        ``krum``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.bulyan(hostile=1)
      >>> sent = jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [1e9]])
      >>> rule.apply(sent, rule.init(jnp.zeros(1), 7)).direction.tolist()
      [3.0]

    Reference:
      El Mhamdi et al., arXiv 1802.07927.
    """
    check_static_int("hostile", hostile, low=0)
    check_axes(axis_name, coordinates_axis)
    least = 4 * hostile + 3

    def combine(state: PyTree, given: Reports) -> Aggregated:
        why = f"hostile={hostile}"
        v = all_vectors(given, axis_name, "bulyan", least, why, coordinates_axis)
        distances, size = v.distances(), v.present.shape[0]
        theta = v.count - 2 * hostile

        def choose(k: jax.Array, left: jax.Array) -> jax.Array:
            score = scores(distances, left, v.count - k, hostile)
            best = jnp.arange(size) == v.ranking(score)[0]
            return left & ~(best & (k < theta) & jnp.isfinite(score))

        every = as_varying(v.present, v.beside)
        left = lax.fori_loop(0, size - 2 * hostile, choose, every)
        chosen = v.present & ~left
        moved = (v.count >= least) & (jnp.sum(chosen) == theta)
        kept = jnp.arange(size) < theta - 2 * hostile

        def leaf(x: jax.Array) -> jax.Array:
            taken = column(chosen, x)
            away = jnp.abs(x - middle(in_order(x, chosen), theta)[None])
            keys = jnp.where(taken, away, jnp.inf), jnp.where(taken, x, 0.0)
            _, nearest = lax.sort(keys, dimension=0, num_keys=1)
            total = jnp.sum(jnp.where(column(kept, x), nearest, 0.0), axis=0)
            return total / jnp.maximum(theta - 2 * hostile, 1)

        return v.settled(jax.tree.map(leaf, v.tree), state, moved)

    return Aggregate(memoryless, combine)
