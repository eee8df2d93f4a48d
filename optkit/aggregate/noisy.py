"""Clipped sums with noise on them: what private aggregates and private gradients have in common."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from optkit.aggregate.base import (
    Aggregate,
    Aggregated,
    Fold,
    Reports,
    folded,
    over_clients,
    weighted_sum,
    zeros_for,
)
from optkit.aggregate.norms import cut_factors
from optkit.distributed.workers import AxisName, as_varying, axes_of
from optkit.spmd import varying
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, check_number, value_at
from optkit.transforms.noise import normal_like
from optkit.tree import PyTree, leaves_with_paths, upcast

Recorded: TypeAlias = Callable[[jax.Array], PyTree] | None


class ClippedReports(NamedTuple):
    """Carry of a clipped sum."""

    total: PyTree
    reports: jax.Array  # int32 scalar
    state: Any


def check_clip(clip: Any, name: str = "clip") -> None:
    """Raises ValueError unless a clipping length is positive, a schedule or an array."""
    check_number(name, clip, low=0.0, open_low=True, infinite=True)


def is_silent(noise: Any) -> bool:
    """Tells whether noise is known to be none when the program is built."""
    return isinstance(noise, int | float) and noise == 0


def check_noise(clip: Any, noise_multiplier: Any, name: str = "clip") -> None:
    """Raises ValueError where noise that is in proportion to the clipping length has no size."""
    check_clip(clip, name)
    if callable(noise_multiplier) and not isinstance(noise_multiplier, jax.Array):
        raise TypeError(
            f"noise_multiplier={noise_multiplier!r} must be a number: accountants take one for all "
            f"steps; {name} may be a schedule, which the noise follows"
        )
    check_number("noise_multiplier", noise_multiplier, low=0.0)
    known = not callable(clip) and not isinstance(clip, jax.Array)
    if known and clip == float("inf") and not is_silent(noise_multiplier):
        raise ValueError(
            f"{name}=inf with noise_multiplier={noise_multiplier!r}: the noise is a multiple of "
            f"the clipping length, which bounds what one example can do; give a finite {name}, or "
            "noise_multiplier=0.0 for no privacy at all"
        )


def add_noise(
    total: PyTree,
    std: Scalar,
    key: jax.Array,
    count: jax.Array,
    recorded: PyTree | None = None,
) -> PyTree:
    """Adds independent normal numbers, that key, step and a leaf's path decide, to a sum.

    Args:
      total: arrays in float32 or better.
      std: standard deviation; a Python 0 draws nothing.
      key: PRNG key.
      count: of the step.
      recorded: standard normal numbers to be taken instead.

    Returns:
      A tree of the same structure.
    """
    if is_silent(std):
        return total
    noise = normal_like(total, key, count, recorded)
    return jax.tree.map(lambda x, n: x + std * jnp.asarray(n, x.dtype), total, noise)


def clipped_reports(
    init: Callable[[PyTree, int], PyTree],
    clip: ScalarOrSchedule,
    finish: Callable[[ClippedReports], Aggregated],
    axis_name: AxisName,
    who: str,
    centre: Callable[[Any], PyTree | None] = lambda state: None,
) -> Aggregate:
    """An aggregate that adds up vectors, or what they are from a centre, clipped."""

    def start(one: PyTree, state: PyTree) -> ClippedReports:
        none = as_varying(jnp.zeros((), jnp.int32), axis_name)
        return ClippedReports(zeros_for(one, axis_name), none, state)

    def add(sums: ClippedReports, given: Reports) -> ClippedReports:
        _check_whole(given.displacement, axis_name, who)
        sent, middle = given.displacement, centre(sums.state)
        if middle is not None:
            sent = jax.tree.map(lambda x, c: upcast(x) - c[None], sent, middle)
        at = value_at(clip, sums.state.rounds)
        factors, _ = cut_factors(sent, at, given.present)
        total = jax.tree.map(jnp.add, sums.total, weighted_sum(factors, sent))
        return ClippedReports(
            total, sums.reports + jnp.sum(given.present, dtype=jnp.int32), sums.state
        )

    def finished(sums: ClippedReports) -> Aggregated:
        total, count = over_clients((sums.total, sums.reports), axis_name)
        return finish(ClippedReports(total, count, sums.state))

    return folded(init, Fold(start, add, finished), axis_name, who)


def _check_whole(sent: PyTree, axis_name: AxisName, who: str) -> None:
    """Raises ValueError where a length would be of a part, and noise the same in several parts."""
    for path, leaf in leaves_with_paths(sent):
        if others := sorted(varying(leaf) - set(axes_of(axis_name))):
            raise ValueError(
                f"{who} bounds the length of all that a client sends, but that varies at leaf "
                f"{path!r} along the mesh axis {others[0]!r}: give axis_name={others[0]!r} if "
                "clients are laid along it; if leaves are cut along it, use jax.jit on whole arrays"
            )
