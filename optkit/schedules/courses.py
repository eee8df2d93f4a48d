"""Named schedules: warmup-stable-decay and its cycles, linear, cosine, powers, slow start."""

import itertools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from optkit.schedules.phases import Phase, Schedule, Shape, check_rate, check_steps
from optkit.transforms.hyperparams import check_choice

Decay = Literal["inverse", "linear", "cosine", "sqrt"]


def _length(name: str, value: Any, whole: int) -> int:
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


def _fall(peak: float, steps: int, final: float, shape: Shape, exact: bool) -> Phase:
    if shape == "inverse" and final == 0:
        raise ValueError("an inverse decay does not reach final=0; give it above 0, or linear")
    late = shape == "inverse" and not exact
    return Phase(shape=shape, steps=steps, first=peak, last=final * peak, late=late)


def _cycle(
    peak: float,
    steps: int,
    begin: float,
    *,
    warmup: Any,
    decay: Any,
    final: float,
    shape: Shape,
    exact: bool,
    skip_zero: bool = False,
) -> list[Phase]:
    """Returns warm-up from ``begin``, the stable phase and the decay of one cycle."""
    rise = _length("warmup", warmup, steps)
    fall = steps - rise if decay is None else _length("decay", decay, steps)
    if rise + fall > steps:
        raise ValueError(
            f"warmup={warmup!r} and decay={decay!r} take {rise} + {fall} of {steps} steps: shorten "
            "them (a float up to 1.0 is a share, an int counts steps)"
        )
    phases = []
    if rise:
        step = (peak - begin) / rise if skip_zero else 0.0
        phases.append(Phase(shape="linear", steps=rise, first=begin + step, last=peak + step))
    if steps - rise - fall:
        flat = steps - rise - fall
        phases.append(Phase(shape="constant", steps=flat, first=peak, last=peak))
    return [*phases, _fall(peak, fall, final, shape, exact)] if fall else phases


def _check(peak: Any, final: Any, shape: str) -> tuple[float, float]:
    check_choice("shape", shape, get_args(Decay))
    peak, final = check_rate("peak", peak), check_rate("final", final)
    if final > 1:
        raise ValueError(f"final={final!r} is a share of the peak, from 0 to 1")
    if shape == "inverse" and peak == 0:
        raise ValueError("peak=0 has no inverse to be linear; give another shape")
    return peak, final


def constant(peak: float, *, warmup: int = 0, skip_zero: bool = False) -> Schedule:
    """Stays at its peak, after a linear warm-up.

    Args:
      peak: the learning rate.
      warmup: steps of the rise from 0.
      skip_zero: the rise takes ``(t+1)/warmup`` at step ``t``, so that no step has rate 0.

    Returns:
      A ``Schedule`` without an end.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.constant(0.5, warmup=2)
      >>> [float(rate(t)) for t in range(4)]
      [0.0, 0.25, 0.5, 0.5]
    """
    peak = check_rate("peak", peak)
    rise = check_steps("warmup", warmup, low=0)
    flat = Phase(shape="constant", steps=None, first=peak, last=peak)
    if not rise:
        return Schedule((flat,), "constant")
    step = peak / rise if skip_zero else 0.0
    up = Phase(shape="linear", steps=rise, first=step, last=peak + step)
    return Schedule((up, flat), "constant")


def linear(
    peak: float,
    steps: int,
    *,
    warmup: int | float = 0,
    final: float = 0.0,
    skip_zero: bool = False,
) -> Schedule:
    """Linear decay: ``peak*(1 - t/T)``, the peak at step 0 and 0 after the last.

    Args:
      peak: the largest learning rate.
      steps: length T of the run.
      warmup: of a linear rise before the decay, an int of steps or a float share of the run.
      final: share of the peak at the end.
      skip_zero: see ``optkit.schedules.constant``.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.linear(1.0, 4)
      >>> [float(rate(t)) for t in range(5)]
      [1.0, 0.75, 0.5, 0.25, 0.0]

    Reference:
      Defazio et al., When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv
      2310.07831, on why it is the default to begin with.
    """
    peak, final = _check(peak, final, "linear")
    options: Any = {"warmup": warmup, "final": final, "skip_zero": skip_zero}
    phases = _cycle(
        peak, check_steps("steps", steps), 0.0, decay=None, shape="linear", exact=True, **options
    )
    return Schedule(tuple(phases), "linear")


def cosine(
    peak: float,
    steps: int,
    *,
    warmup: int | float = 0,
    final: float = 0.0,
    skip_zero: bool = False,
) -> Schedule:
    """Cosine decay: half a wave from the peak to ``final*peak`` at the end of the run.

    Args:
      peak: the largest learning rate.
      steps: length of the run.
      warmup: of a linear rise before it, an int of steps or a float share of the run.
      final: share of the peak at the end.
      skip_zero: see ``optkit.schedules.constant``.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.cosine(1.0, 4)
      >>> [round(float(rate(t)), 3) for t in range(5)]
      [1.0, 0.854, 0.5, 0.146, 0.0]
    """
    peak, final = _check(peak, final, "cosine")
    options: Any = {"warmup": warmup, "final": final, "skip_zero": skip_zero}
    phases = _cycle(
        peak, check_steps("steps", steps), 0.0, decay=None, shape="cosine", exact=True, **options
    )
    return Schedule(tuple(phases), "cosine")


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
    peak, final = _check(peak, final, shape)
    options: Any = {"warmup": warmup, "decay": decay, "final": final, "skip_zero": skip_zero}
    phases = _cycle(peak, check_steps("steps", steps), 0.0, shape=shape, exact=exact, **options)
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
    peak, final = _check(peak, final, shape)
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
    phases = _cycle(peak, given[0], 0.0, warmup=warmup, skip_zero=skip_zero, **options)
    for length in given[1:]:
        phases += _cycle(peak, length, final * peak, warmup=rewarmup, **options)
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
    fall = _length("decay", decay, at)
    if not fall:
        raise ValueError(f"decay={decay!r} leaves no step to fall in")
    peak = float(trunk(at))
    _, final = _check(peak, final, shape)
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


def power(
    peak: float,
    *,
    warmup: int = 1000,
    exponent: float = 0.5,
    floor: float = 0.0,
    steps: int | None = None,
    skip_zero: bool = False,
) -> Schedule:
    """Falls as a power of the step: ``peak*(t/warmup)**-exponent`` after a linear warm-up.

    Args:
      peak: the largest learning rate, at step ``warmup``.
      warmup: steps of the rise, at least 1, which are also the unit of the fall.
      exponent: how fast it falls; 0.5 is the inverse square root.
      floor: least share of the peak.
      steps: where it stops falling; None for never.
      skip_zero: see ``optkit.schedules.constant``.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.power(1.0, warmup=10, exponent=1.0)
      >>> [round(float(rate(t)), 3) for t in (5, 10, 20, 100)]
      [0.5, 1.0, 0.5, 0.1]

    Reference:
      The field's; exponents other than 1/2 for example in Shen et al., Power Scheduler, arXiv
      2408.13359, whose law of the peak is not part of it.
    """
    peak, floor = _check(peak, floor, "linear")
    rise = check_steps("warmup", warmup)
    fall = None if steps is None else check_steps("steps", steps, rise + 1) - rise
    step = peak / rise if skip_zero else 0.0
    up = Phase(shape="linear", steps=rise, first=step, last=peak + step)
    down = Phase(
        shape="power",
        steps=fall,
        first=peak,
        last=floor * peak,
        scale=float(rise),
        exponent=check_rate("exponent", exponent),
    )
    return Schedule((up, down), "power")


def inverse_sqrt(
    peak: float,
    *,
    warmup: int = 1000,
    floor: float = 0.0,
    steps: int | None = None,
    skip_zero: bool = False,
) -> Schedule:
    """Falls as the inverse square root of the step, ``peak*sqrt(warmup/t)``, after a warm-up.

    Args:
      peak: the largest learning rate, at step ``warmup``.
      warmup: steps of the linear rise, at least 1.
      floor: least share of the peak.
      steps: where it stops falling; None for never.
      skip_zero: see ``optkit.schedules.constant``.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.inverse_sqrt(1.0, warmup=10)
      >>> [round(float(rate(t)), 3) for t in (5, 10, 40, 1000)]
      [0.5, 1.0, 0.5, 0.1]

    Reference:
      Vaswani et al., Attention Is All You Need, arXiv 1706.03762, with the peak for a parameter.
    """
    made = power(peak, warmup=warmup, floor=floor, steps=steps, skip_zero=skip_zero)
    return Schedule(made.phases, "inverse_sqrt")


def slow_start_fast_decay(
    peak: float,
    steps: int,
    *,
    epochs: float = 10,
    rise: int | float = 0.5,
    low: float = 0.01,
    factor: float = 0.5,
    shape: Literal["exponential", "linear"] = "exponential",
) -> Schedule:
    """A long rise from a small rate to the peak, then a fast geometric fall: for fine-tuning.

    With ``w`` the steps of the rise: ``peak*low**(1 - t/w)`` up to ``w`` (or linear), then
    ``peak*factor**((t-w)/epoch)``, an epoch being ``steps/epochs``. **Low confidence**: only the
    paper's abstract and others' descriptions could be read, so that this parametrisation is ours.

    Args:
      peak: the largest learning rate; 0.01 for SGD in such descriptions.
      steps: length of the run.
      epochs: how many epochs these are.
      rise: an int of steps or a float share of the run.
      low: share of the peak at step 0.
      factor: by which the rate falls an epoch, in (0, 1].
      shape: of the rise.

    Returns:
      A ``Schedule``.

    Raises:
      ValueError: a number out of range, or a rise that leaves no steps to fall or to rise in.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.slow_start_fast_decay(0.01, 100)
      >>> [round(float(rate(t)), 5) for t in (0, 25, 50, 60, 70)]
      [0.0001, 0.001, 0.01, 0.005, 0.0025]

    Reference:
      Jeddi et al., A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning Via
      Adversarial Fine-tuning, arXiv 2012.13628.
    """
    check_choice("shape", shape, ("exponential", "linear"))
    peak, low = check_rate("peak", peak, above=True), check_rate("low", low, above=True)
    factor = check_rate("factor", factor, above=True)
    if low > 1 or factor > 1:
        raise ValueError(f"low={low!r} and factor={factor!r} are shares of at most 1")
    up = _length("rise", rise, check_steps("steps", steps))
    if not 0 < up < steps:
        raise ValueError(f"rise={rise!r} takes {up} of {steps} steps; leave some on both sides")
    halvings = (steps - up) * check_rate("epochs", epochs, above=True) / steps
    return Schedule(
        (
            Phase(shape=shape, steps=up, first=low * peak, last=peak),
            Phase(shape="exponential", steps=steps - up, first=peak, last=peak * factor**halvings),
        ),
        "slow_start_fast_decay",
    )
