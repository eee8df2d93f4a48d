"""Rise, peak and fall: warmup-stable-decay, its cycles, and branches from a trunk."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from optkit.schedules.phases import Phase, Schedule, Shape, check_rate, check_steps
from optkit.transforms.hyperparams import check_choice

Decay = Literal["inverse", "linear", "cosine", "sqrt"]


def steps_of(name: str, value: Any, whole: int) -> int:
    """Returns steps from a whole number of them, or from a share of a whole."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise ValueError(f"{name}={value!r} must be a number of steps or a share")
    if isinstance(value, int | np.integer):
        return check_steps(name, value, low=0)
    if not value >= 0 or (value > 1 and value != int(value)):
        raise ValueError(
            f"{name}={value!r} is neither a share, from 0.0 to 1.0, nor a whole number of steps"
        )
    return int(value * whole) if value <= 1 else int(value)


def warm_up(peak: float, steps: int, *, skip_zero: bool, begin: float = 0.0) -> list[Phase]:
    """Returns a linear rise to the peak, or no phase if it has no steps."""
    if not steps:
        return []
    step = (peak - begin) / steps if skip_zero else 0.0
    return [Phase(shape="linear", steps=steps, first=begin + step, last=peak + step)]


def _fall(peak: float, steps: int, final: float, shape: Shape, exact: bool) -> Phase:
    if shape == "inverse" and final == 0:
        raise ValueError("an inverse decay does not reach final=0; give it above 0, or linear")
    late = shape == "inverse" and not exact
    return Phase(shape=shape, steps=steps, first=peak, last=final * peak, late=late)


def cycle(
    peak: float,
    steps: int,
    *,
    warmup: Any,
    decay: Any,
    final: float,
    shape: Shape,
    exact: bool = True,
    skip_zero: bool = False,
    begin: float = 0.0,
) -> list[Phase]:
    """Returns rise from ``begin``, stable phase and fall of a cycle; None falls for the rest."""
    rise = steps_of("warmup", warmup, steps)
    fall = steps - rise if decay is None else steps_of("decay", decay, steps)
    if rise + fall > steps:
        raise ValueError(
            f"warmup={warmup!r} and decay={decay!r} take {rise} + {fall} of {steps} steps: shorten "
            "them (a float up to 1.0 is a share, an int counts steps)"
        )
    phases = warm_up(peak, rise, skip_zero=skip_zero, begin=begin)
    flat = steps - rise - fall
    if flat:
        phases.append(Phase(shape="constant", steps=flat, first=peak, last=peak))
    return [*phases, _fall(peak, fall, final, shape, exact)] if fall else phases


def check_course(peak: Any, final: Any, shape: str) -> tuple[float, float]:
    """Returns the peak and the share of it at the end as floats, or raises."""
    check_choice("shape", shape, get_args(Decay))
    peak, final = check_rate("peak", peak), check_rate("final", final)
    if final > 1:
        raise ValueError(f"final={final!r} is a share of the peak, from 0 to 1")
    if shape == "inverse" and peak == 0:
        raise ValueError("peak=0 has no inverse to be linear; give another shape")
    return peak, final


def wsd(
    peak: float,
    steps: int,
    *,
    warmup: int | float = 0.01,
    decay: int | float = 0.1,
    final: float = 0.1,
    shape: Decay = "inverse",
    exact: bool = True,
    skip_zero: bool = False,
) -> Schedule:
    """Warmup-stable-decay: a linear rise, the peak for most of the run, a fall at its end.

    The fall, with ``x`` from 0 to 1 over its steps and ``r = final``: "inverse"
    ``1/(1 + (1/r - 1)*x)``, whose reciprocal is linear, the paper's; "linear" ``1 - (1-r)*x``;
    "cosine"; "sqrt" ``1 - (1-r)*sqrt(x)``. The stable part knows no end: a fall may begin at any of
    its checkpoints, see ``optkit.schedules.branch``.

    Args:
      peak: the largest learning rate, about that of a cosine.
      steps: length of the run.
      warmup: of the rise, an int of steps or a float share of the run. Above 1 a float has to be
        whole and counts steps; 1.0 is the whole run, 1 a step.
      decay: of the fall, likewise. A share is rounded down to whole steps.
      final: share r of the peak at the end.
      shape: see above.
      exact: False takes levanter's inverse decay, whose first two steps are both one step down.
      skip_zero: see ``optkit.schedules.constant``.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: a number out of range, rise and fall longer than the run, or an inverse decay to
        0.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.wsd(1.0, 10, warmup=2, decay=4, final=0.5, shape="linear")
      >>> [round(float(rate(t)), 3) for t in (0, 1, 2, 6, 8, 10)]
      [0.0, 0.5, 1.0, 1.0, 0.75, 0.5]

    Reference:
      Wen et al., Understanding Warmup-Stable-Decay Learning Rates, arXiv 2410.05192; conventions of
      levanter, which the authors used, but that an int is a number of steps, 1 too.
    """
    peak, final = check_course(peak, final, shape)
    options: Any = {"warmup": warmup, "decay": decay, "final": final, "skip_zero": skip_zero}
    phases = cycle(peak, check_steps("steps", steps), shape=shape, exact=exact, **options)
    return Schedule(tuple(phases), "wsd")


def wsd_s(
    peak: float,
    ends: Sequence[int] | None = None,
    *,
    lengths: Sequence[int] | None = None,
    warmup: int | float = 0.01,
    decay: int | float = 0.1,
    rewarmup: int | float = 0,
    final: float = 0.1,
    shape: Decay = "inverse",
    exact: bool = True,
    skip_zero: bool = False,
) -> Schedule:
    """WSD-S: cycles of one run, each of which ends in a fall; one run serves all budgets.

    Each cycle stays at the peak, falls to ``final*peak`` at its end, and the next one goes on from
    the weights that have fallen, at once at the peak. Only the first has a warm-up. Checkpoints of
    the ends ``e_i`` are the models of the budgets; optimizer state is kept.

    Evidence: that one run is at each budget as good as a run made for it is the paper's claim. In
    ``python -m benchmarks.claims wsd_s``, a byte language model, it has 0.944, 0.960 and 0.963 of
    the bits a byte of cosine runs of three lengths, in 1000 steps where these take 1750.

    Args:
      peak: the largest learning rate.
      ends: the steps at which cycles end, rising.
      lengths: of the cycles, in place of ends.
      warmup: of the first cycle's rise, an int of steps or a float share of that cycle.
      decay: of each fall, an int of steps or a float share of its cycle.
      rewarmup: of a rise from the value that has fallen, in each later cycle; the paper's is 0.
      final: share of the peak at the ends.
      shape: of the falls, see ``optkit.schedules.wsd``.
      exact: see ``optkit.schedules.wsd``.
      skip_zero: see ``optkit.schedules.constant``; of the first cycle.

    Returns:
      A ``Schedule``; the value at ``e_i`` itself is the first one of the next cycle.

    Raises:
      ValueError: ends that do not rise, both or none of ends and lengths, or as ``wsd``.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.wsd_s(1.0, [10, 20], warmup=0, decay=2, shape="linear")
      >>> [round(float(rate(t)), 2) for t in (7, 8, 9, 10, 19, 20)]
      [1.0, 1.0, 0.55, 1.0, 0.55, 0.1]

    Reference:
      Wen et al., Understanding Warmup-Stable-Decay Learning Rates, arXiv 2410.05192.
    """
    peak, final = check_course(peak, final, shape)
    if (ends is None) == (lengths is None):
        raise ValueError("wsd_s needs the ends of its cycles, or their lengths, and not both")
    for name, steps in (("ends", ends), ("lengths", lengths)):
        if isinstance(steps, int | float | str | np.number):
            raise ValueError(f"{name}={steps!r} must be a list of steps, such as {name}=[{steps}]")
    if ends is None:
        given = [check_steps("lengths", length) for length in lengths or ()]
    else:
        marks = [0, *(check_steps("ends", end) for end in ends)]
        given = [after - before for before, after in itertools.pairwise(marks)]
        if any(length < 1 for length in given):
            raise ValueError(f"ends={tuple(ends)} must rise")
    if not given:
        raise ValueError("wsd_s needs at least one cycle")
    options: Any = {"decay": decay, "final": final, "shape": shape, "exact": exact}
    phases = cycle(peak, given[0], warmup=warmup, skip_zero=skip_zero, **options)
    for length in given[1:]:
        phases += cycle(peak, length, begin=final * peak, warmup=rewarmup, **options)
    return Schedule(tuple(phases), "wsd_s")


def branch(
    trunk: Schedule,
    at: int,
    decay: int | float = 0.1,
    *,
    final: float = 0.1,
    shape: Decay = "inverse",
    exact: bool = True,
) -> Schedule:
    """Follows a trunk up to a step, then falls: a decay branch from one of its checkpoints.

    Restore weights and optimizer state of step ``at``, whose counters go on, and train with the
    branch; the trunk is not touched, so that one trunk carries a branch for each budget.

    Args:
      trunk: the schedule of the run that wrote the checkpoint.
      at: step of the checkpoint.
      decay: length of the fall, an int of steps or a float share of ``at``.
      final: share at the end of the rate that the trunk has at ``at``.
      shape: see ``optkit.schedules.wsd``.
      exact: see ``optkit.schedules.wsd``.

    Returns:
      A ``Schedule`` that equals the trunk before ``at`` and ends at ``at`` plus the decay.

    Raises:
      ValueError: a number out of range, or ``at`` inside a cosine, inverse or sqrt phase.

    Example:
      >>> import optkit
      >>> trunk = optkit.schedules.constant(1.0, warmup=10)
      >>> rate = optkit.schedules.branch(trunk, 100, 20, shape="linear", final=0.0)
      >>> [float(rate(t)) for t in (5, 99, 100, 110, 120)], rate.steps
      ([0.5, 1.0, 1.0, 0.5, 0.0], 120)

    Reference:
      Wen et al., Understanding Warmup-Stable-Decay Learning Rates, arXiv 2410.05192.
    """
    if not isinstance(trunk, Schedule):
        raise TypeError(f"trunk={trunk!r} is no optkit.schedules.Schedule")
    check_steps("at", at)
    fall = steps_of("decay", decay, at)
    if not fall:
        raise ValueError(f"decay={decay!r} leaves no step to fall in")
    peak = float(trunk(at))
    _, final = check_course(peak, final, shape)
    kept = []
    for start, phase in zip(trunk.starts, trunk.phases, strict=True):
        if start >= at:
            break
        whole = phase.steps is not None and start + phase.steps <= at
        try:
            kept.append(phase if whole else phase.cut(at - start))
        except ValueError as error:
            end = start + (phase.steps or 0)
            raise ValueError(
                f"at={at} lies within steps {start} to {end} of the trunk: {error}; let the branch "
                f"begin at {start} or before, or at {end} or later"
            ) from error
    done = sum(phase.steps or 0 for phase in kept)
    if done < at:  # behind the trunk's end its last value holds
        kept.append(Phase(shape="constant", steps=at - done, first=peak, last=peak))
    return Schedule((*kept, _fall(peak, fall, final, shape, exact)), f"{trunk.name} branch {at}")
