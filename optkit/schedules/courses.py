"""Courses of one rise and one fall: constant, linear, cosine, powers, slow start."""

from typing import Any, Literal

from optkit.schedules.cycles import check_course, cycle, steps_of, warm_up
from optkit.schedules.phases import Phase, Schedule, check_rate, check_steps
from optkit.transforms.hyperparams import check_choice


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
    return Schedule((*warm_up(peak, rise, skip_zero=skip_zero), flat), "constant")


def _falling(
    shape: Literal["linear", "cosine"],
    peak: float,
    steps: int,
    warmup: int | float,
    final: float,
    skip_zero: bool,
) -> Schedule:
    """Returns a rise, and a fall that takes the rest of the run."""
    peak, final = check_course(peak, final, shape)
    options: Any = {"warmup": warmup, "decay": None, "final": final, "skip_zero": skip_zero}
    phases = cycle(peak, check_steps("steps", steps), shape=shape, **options)
    return Schedule(tuple(phases), shape)


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
    return _falling("linear", peak, steps, warmup, final, skip_zero)


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
    return _falling("cosine", peak, steps, warmup, final, skip_zero)


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
    peak, floor = check_course(peak, floor, "linear")
    rise = check_steps("warmup", warmup)
    fall = None if steps is None else check_steps("steps", steps, rise + 1) - rise
    down = Phase(
        shape="power",
        steps=fall,
        first=peak,
        last=floor * peak,
        scale=float(rise),
        exponent=check_rate("exponent", exponent),
    )
    return Schedule((*warm_up(peak, rise, skip_zero=skip_zero), down), "power")


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
    up = steps_of("rise", rise, check_steps("steps", steps))
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
