"""Centered clipping: a centre that remembers, and that no client moves far."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from optkit.aggregate.base import Aggregate, Aggregated, Reports, weighted_sum
from optkit.aggregate.checks import check_leaves
from optkit.aggregate.vectors import all_vectors
from optkit.catalogue import register
from optkit.distributed.workers import AxisName, check_axes
from optkit.transforms.hyperparams import check_number, check_static_int, check_static_number
from optkit.tree import PyTree, zeros_like_params


class CentreState(NamedTuple):
    """State of ``centered_clipping``."""

    centre: PyTree  # like the parameters, float32 or better: what the last round came to


@register(
    kind="aggregate",
    family="robust",
    paper=("Learning from History for Byzantine Robust Optimization", "2012.10333", 2021),
    state_bytes={"*": 4},
    tags=("federated", "robust", "byzantine", "clipping"),
    chain="iterations * (centre + mean(clip(D - centre, radius)))",
    example={"radius": 10.0},
)
def centered_clipping(
    *,
    radius: float,
    iterations: int = 1,
    axis_name: AxisName = None,
    coordinates_axis: AxisName = None,
) -> Aggregate:
    """Centered clipping: a centre moves by the clients' mean distance from it, each clipped.

    From the last round's centre, at first 0, ``iterations`` times:

    1. ``f_i = min(1, radius/|D_i - c|)``, norms over the whole tree.
    2. ``c <- c + (1/W)*sum(f_i*(D_i - c))`` of the W clients of a round.

    An absent client counts as ``D_i = c``, the paper's asynchronous form, and so does a vector that
    is not finite or whose squared distance is none: each client moves the centre by ``radius/W`` at
    most. A round without any present one moves nothing. Weights are not used.

    Evidence: in ``python -m benchmarks.claims robust``, digits with two hostile workers of nine,
    errors are 2.5% where these reverse gradients (the mean: 100%), and 2.4% where they hide within
    the others' spread (the mean: 44.3%), at a radius chosen without hostile workers.

    Args:
      radius: tau, above 0; infinite for the mean. It has to match what is sent: the paper's 100 is
        of momenta without the factor 1 - b1, which at b1 = 0.9 are ten times those with it.
      iterations: 1, or 3 for a start without memory.
      axis_name: a mesh axis inside ``jax.shard_map`` that clients are laid along, some on each
        device; None for all on a leading axis.
      coordinates_axis: see ``optkit.aggregate.krum``.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 4 a parameter; it needs all vectors at once.
      Coordinates sharded and clients not: an all-reduce of (W,) an iteration. Along ``axis_name``:
      the same, an exchange that gives each device all clients' values of its share of the
      coordinates, and a gather.

    Raises:
      ValueError: ``radius`` not above 0, ``iterations`` below 1; axes as ``optkit.aggregate.krum``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.centered_clipping(radius=1.0)
      >>> state = rule.init(jnp.zeros(1), 4)
      >>> sent = jnp.array([[0.5], [0.5], [1e9], [jnp.nan]])
      >>> rule.apply(sent, state).direction.tolist()
      [0.5]

    Reference:
      Karimireddy et al., arXiv 2012.10333.
    """
    check_static_number("radius", radius)
    check_number("radius", radius, low=0.0, open_low=True, infinite=True)
    check_static_int("iterations", iterations)
    check_axes(axis_name, coordinates_axis)

    def init(params: PyTree, clients: int) -> CentreState:
        check_static_int("clients", clients)
        return CentreState(zeros_like_params(params))

    def combine(state: CentreState, given: Reports) -> Aggregated:
        check_leaves(given.displacement, state.centre, "state")
        v = all_vectors(given, axis_name, "centered_clipping", coordinates_axis=coordinates_axis)

        def body(_: int, c: PyTree) -> PyTree:
            squared = v.squares(c)
            norm = jnp.sqrt(squared)
            f = jnp.where(norm <= radius, 1.0, radius / norm)
            f = jnp.where(v.readable(squared), f, 0.0)
            away = weighted_sum(f, jax.tree.map(lambda x, y: x - y[None], v.tree, c))
            return jax.tree.map(lambda x, y: x + y / v.present.shape[0], c, away)

        # Added to zeros, which vary as the vectors do.
        start = jax.tree.map(lambda x, y: y + x.astype(y.dtype), v.own(state.centre), v.zeros())
        out = v.whole(lax.fori_loop(0, iterations, body, start))
        centre = jax.tree.map(lambda new, old: new.astype(old.dtype), out, state.centre)
        return Aggregated(out, CentreState(centre), v.count > 0)

    return Aggregate(init, combine)
