"""Aggregates whose result tells little of any one client: clipped sums with noise on them."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from optkit.aggregate.base import Aggregate, Aggregated
from optkit.aggregate.noisy import (
    ClippedReports,
    Recorded,
    add_noise,
    check_clip,
    check_noise,
    clipped_reports,
    is_silent,
)
from optkit.catalogue import register
from optkit.distributed.workers import AxisName, check_axis_name
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice, check_number, value_at
from optkit.transforms.noise import Key, fresh_key
from optkit.transforms.sketching import check_key
from optkit.tree import PyTree, zeros_like_params


class NoiseState(NamedTuple):
    """State of ``dp_mean``."""

    key: jax.Array  # PRNG key; constant, in Optax's dialect another one after each round
    rounds: jax.Array  # int32 scalar


class ClippedMomentumState(NamedTuple):
    """State of ``dp_centered_clipping``."""

    centre: PyTree  # float32, last direction
    key: jax.Array  # PRNG key, constant
    rounds: jax.Array  # int32 scalar, those that moved


@register(
    kind="aggregate",
    family="private",
    paper=("Deep Learning with Differential Privacy", "1607.00133", 2016),
    state_bytes={"*": 0},
    tags=("federated", "privacy", "mean", "clipping"),
    chain="(sum clip(D, C) + C sigma N)/expected",
    example={"clip": 1.0, "noise_multiplier": 0.5, "expected": 8.0, "key": 0},
)
def dp_mean(
    clip: ScalarOrSchedule,
    noise_multiplier: float,
    *,
    key: Key,
    expected: float | None = None,
    dialect: Literal["optkit", "optax"] = "optkit",
    noise: Recorded = None,
    axis_name: AxisName = None,
) -> Aggregate:
    """The mean of clipped reports with Gaussian noise: DP-SGD, and DP-FedAvg of clients.

    1. ``n_i`` = norm of ``D_i`` over all leaves; ``s = sum D_i*min(1, clip/n_i)`` over the present.
    2. ``D = (s + clip*noise_multiplier*N(0, I))/expected``, noise once and not by device.

    A report is one example's gradient or one client's displacement; what is bounded is what one of
    them does. Weights are not read: each counts once. A report that is not finite adds nothing. A
    round without anybody still moves, by noise, as its absence would tell who was not drawn.

    Args:
      clip: longest report, above 0; may be a schedule.
      noise_multiplier: standard deviation of the noise on the sum, in units of ``clip``.
      key: seed or PRNG key of the noise. Who knows it can take the noise away.
      expected: how many reports a round has on average: the sampling rate times all. Dividing by
        those that came would tell how many they were.
      dialect: "optkit" draws noise from the round and each leaf's path. "optax" draws as
        ``optax.contrib.differentially_private_aggregate``: keys split by the number and order of
        leaves; ``expected`` may be left out, and is then what came.
      noise: (int32 rounds so far) -> tree of standard normal numbers to be added in place of drawn
        ones, so that a run can be repeated.
      axis_name: see ``optkit.aggregate.mean``.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: a key and a counter; clients can come in
      chunks.

    Raises:
      ValueError: no ``expected``, ``clip`` not positive, noise for an infinite ``clip``; in a round
        inside ``jax.shard_map``, leaves that are cut along an axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.dp_mean(1.0, 0.0, expected=2, key=0)
      >>> state = rule.init(jnp.zeros(2), 3)
      >>> sent = jnp.array([[3.0, 4.0], [0.0, 0.5], [jnp.nan, 0.0]])
      >>> [round(x, 3) for x in rule.apply(sent, state).direction.tolist()]
      [0.3, 0.65]

    Reference:
      Abadi et al., arXiv 1607.00133; McMahan et al., arXiv 1710.06963, for clients. Departures from
      Optax: reports that are not finite count for nothing (Optax passes NaN on unclipped and turns
      an infinity into NaN), the divisor is fixed, noise does not depend on other leaves. Noise is
      that of a 64-bit generator in floating point: no defence against attacks on its last bits.
    """
    check_axis_name(axis_name)
    check_choice("dialect", dialect, ("optkit", "optax"))
    check_noise(clip, noise_multiplier)
    check_key(key)
    if expected is None and dialect == "optkit":
        raise ValueError(
            "expected=None: give how many reports a round has on average (sampling rate times all "
            "there are); accountants assume a divisor that does not tell how many were drawn"
        )
    if expected is not None:
        check_number("expected", expected, low=0.0, open_low=True)

    def finish(sums: ClippedReports) -> Aggregated:
        held: NoiseState = sums.state
        recorded = None if noise is None else noise(held.rounds)
        next_key = held.key
        if dialect == "optax":
            next_key, drawn = _optax_noise(held.key, sums.total)
            recorded = drawn if recorded is None else recorded
        std = 0.0 if is_silent(noise_multiplier) else value_at(clip, held.rounds) * noise_multiplier
        total = add_noise(sums.total, std, held.key, held.rounds, recorded)
        below = jnp.maximum(sums.reports, 1) if expected is None else expected
        direction = jax.tree.map(lambda x: x / jnp.asarray(below, x.dtype), total)
        moved = jnp.ones((), bool) if expected is not None else sums.reports > 0
        return Aggregated(direction, NoiseState(next_key, held.rounds + 1), moved)

    def init(params: PyTree, clients: int) -> NoiseState:
        del params, clients
        return NoiseState(fresh_key(key), jnp.zeros((), jnp.int32))

    return clipped_reports(init, clip, finish, axis_name, "dp_mean")


def _optax_noise(key: jax.Array, like: PyTree) -> tuple[jax.Array, PyTree]:
    """Returns Optax's next key, and the numbers it draws: a key for each leaf in their order."""
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, len(leaves) + 1)
    drawn = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys[1:], leaves, strict=True)]
    return keys[0], jax.tree.unflatten(structure, drawn)


@register(
    kind="aggregate",
    family="private",
    paper=(
        "DP-BREM: Differentially-Private and Byzantine-Robust Federated Learning with Client "
        "Momentum",
        "2306.12608",
        2023,
    ),
    state_bytes={"*": 4},
    tags=("federated", "privacy", "robust", "clipping", "momentum"),
    chain="M + (sum clip(m - M, C) + std N)/n",
    example={"clip": 1.0, "noise_std": 0.5, "key": 0},
)
def dp_centered_clipping(
    clip: ScalarOrSchedule,
    noise_std: ScalarOrSchedule = 0.0,
    *,
    key: Key,
    noise: Recorded = None,
    axis_name: AxisName = None,
) -> Aggregate:
    """Centered clipping around the last direction, with noise on the sum: the server of DP-BREM.

    ``M <- M + (sum clip(m_i - M, clip) + noise_std*N(0, I))/n`` over the n present; M is the
    direction. A round without reports moves nothing and releases nothing.

    One hostile client moves M by at most ``clip/n``. Reports are momenta of clipped gradients
    (``optkit.privacy.dp_brem`` makes them); what is not finite counts as M. Weights are not read.

    Args:
      clip: how far from M a report may pull, above 0; infinity clips nothing. A number or a
        schedule of the rounds that moved.
      noise_std: standard deviation of the noise on the sum; a number or a schedule.
      key: seed or PRNG key of the noise. Who knows it can take the noise away.
      noise: see ``optkit.aggregate.dp_mean``.
      axis_name: see ``optkit.aggregate.mean``.

    Returns:
      An ``optkit.aggregate.Aggregate``. State bytes: 4 a parameter for M, float32; clients can come
      in chunks.

    Raises:
      ValueError: ``clip`` not positive; in a round inside ``jax.shard_map``, leaves that are cut
        along an axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> rule = optkit.aggregate.dp_centered_clipping(1.0, key=0)
      >>> state = rule.init(jnp.zeros(1), 2)
      >>> rule.apply(jnp.array([[0.5], [1000.0]]), state).direction.tolist()
      [0.75]

    Reference:
      Gu et al., arXiv 2306.12608, Emory-AIMS/DP-BREM. The algorithm is certain, what epsilon a
      ``noise_std`` comes to is not: the code scales noise by the length that examples are clipped
      to, and leaves the accounting through the clients' momentum to its user.
    """
    check_axis_name(axis_name)
    check_clip(clip)
    check_number("noise_std", noise_std, low=0.0)
    check_key(key)

    def finish(sums: ClippedReports) -> Aggregated:
        held: ClippedMomentumState = sums.state
        recorded = None if noise is None else noise(held.rounds)
        std = value_at(noise_std, held.rounds)
        total = add_noise(sums.total, std, held.key, held.rounds, recorded)
        moved = sums.reports > 0
        below = jnp.maximum(sums.reports, 1)
        centre = jax.tree.map(
            lambda c, x: jnp.where(moved, c + x / jnp.asarray(below, x.dtype), c),
            held.centre,
            total,
        )
        state = ClippedMomentumState(centre, held.key, held.rounds + moved)
        return Aggregated(centre, state, moved)

    def init(params: PyTree, clients: int) -> ClippedMomentumState:
        del clients
        count = jnp.zeros((), jnp.int32)
        return ClippedMomentumState(zeros_like_params(params), fresh_key(key), count)

    def centre(state: ClippedMomentumState) -> PyTree:
        return state.centre

    return clipped_reports(init, clip, finish, axis_name, "dp_centered_clipping", centre)
