"""Refined schedules: the one that the gradient norms of a previous run ask for."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from optkit.schedules.phases import Phase, Schedule, check_rate
from optkit.transforms.hyperparams import check_choice

Norms = Literal["adam", "sgd"]
_POWER = {"adam": 1.0, "sgd": 2.0}  # of L1 norms, of L2 norms


def _series(norms: Any) -> np.ndarray:
    """Returns norms as float64; what is infinite, NaN or 0 is interpolated."""
    found = np.asarray(norms, np.float64)
    if found.ndim != 1 or found.size < 2:
        raise ValueError(f"norms of shape {found.shape} are no series; give one a step, at least 2")
    good = np.flatnonzero(np.isfinite(found) & (found > 0))
    if not good.size:
        raise ValueError("none of the gradient norms is finite and above 0")
    return np.interp(np.arange(found.size), good, found[good])


def _median_filter(series: np.ndarray, share: float) -> np.ndarray:
    """Medians of an odd window of a share of the series, its end reflected, its begin repeated."""
    half = int(share * series.size) // 2
    if not half:
        return series
    window = 2 * half + 1
    padded = np.pad(series, (0, 2 * window), mode="reflect")
    padded = np.pad(padded, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, window)
    return np.median(windows[: series.size], axis=-1)


def refine(
    norms: Sequence[float] | np.ndarray,
    kind: Norms = "adam",
    *,
    smooth: float = 0.1,
    scale: Literal["max", "last"] = "max",
) -> np.ndarray:
    """Returns the schedule that minimises a bound on the last iterate's loss, from gradient norms.

    1. Norms that are infinite, NaN or 0 are replaced by interpolation;
    2. ``G``: a median filter of width ``w = 2*floor(floor(smooth*T)/2) + 1``; at the end of the
       series it reads ``2*w`` reflected norms, at the begin the first one repeated;
    3. ``c_t = 1/G_t`` ("adam", of L1 norms) or ``1/G_t**2`` ("sgd", of L2 norms);
    4. ``s_t = c_t * sum_{p>t} c_p``, divided by its maximum.

    Constant norms give a linear decay, large early norms a warm-up, and norms that shrink towards
    the end a faster fall.

    Args:
      norms: of the gradients of a previous run of the same length, one a step.
      kind: which method the run was made with.
      smooth: share of the series that the filter's window takes; 0 does not filter.
      scale: "max" divides as above; "last" by the last weight, as the official code does.

    Returns:
      A float64 array, one value a step, the last 0.

    Raises:
      ValueError: norms that are no series of at least 2, or without any that is finite and above 0.

    Example:
      >>> import optkit
      >>> optkit.schedules.refine([3.0] * 5).tolist()
      [1.0, 0.75, 0.5, 0.25, 0.0]

    Reference:
      Defazio et al., When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement, arXiv
      2310.07831, and facebookresearch/adaptive_scheduling, which skips infinities by shortening
      the series.
    """
    check_choice("kind", kind, tuple(_POWER))
    check_choice("scale", scale, ("max", "last"))
    if check_rate("smooth", smooth) > 1:
        raise ValueError(f"smooth={smooth!r} is a share of the series, from 0 to 1")
    series = _median_filter(_series(norms), smooth)
    unit = float(series.min())  # so that no power of the norms overflows
    weights = (series / unit) ** -_POWER[kind]
    after = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    course = weights * after
    return course / (course.max() if scale == "max" else weights[-1] * unit ** _POWER[kind])


def refined(
    peak: float,
    norms: Sequence[float] | np.ndarray,
    kind: Norms = "adam",
    *,
    smooth: float = 0.1,
) -> Schedule:
    """Refines the learning rate of a run from the gradient norms of a previous one.

    Train with a linear decay, refine once, and train anew: ``peak * optkit.schedules.refine(...)``.

    Args:
      peak: the tuned peak of the previous run.
      norms: L1 norms ("adam") or L2 norms ("sgd") of its gradients, one a step.
      kind: see ``optkit.schedules.refine``.
      smooth: see ``optkit.schedules.refine``.

    Returns:
      A ``Schedule`` of as many steps as there are norms.

    Raises:
      ValueError: as ``optkit.schedules.refine``.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.refined(0.1, [4.0, 2.0, 1.0, 1.0, 1.0], smooth=0.0)
      >>> [round(float(rate(t)), 3) for t in range(5)]
      [0.044, 0.075, 0.1, 0.05, 0.0]

    Reference:
      Defazio et al., arXiv 2310.07831.
    """
    values = check_rate("peak", peak) * refine(norms, kind, smooth=smooth)
    phase = Phase(shape="points", steps=values.size, values=tuple(map(float, values)))
    return Schedule((phase,), "refined")
