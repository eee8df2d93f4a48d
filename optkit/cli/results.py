"""What came out of a race: standings at equal steps and at equal seconds, and the curves."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from optkit.cli.racing import Run
from optkit.cli.tables import seconds_text

__all__ = ["Comparison", "Curve", "Panel", "Score", "Standing", "Verdict", "compare", "panels"]


@dataclasses.dataclass(frozen=True)
class Score:
    """The held-out metric of one entrant at one point, over its seeds.

    Attributes:
      mean: mean over seeds.
      spread: standard deviation over seeds, or None for a single seed.
      values: one value a seed.
    """

    mean: float
    spread: float | None
    values: tuple[float, ...]

    def __str__(self) -> str:
        digits = ".4f" if abs(self.mean) >= 0.01 else ".2e"
        spread = "" if self.spread is None else f" ± {self.spread:{digits}}"
        return f"{self.mean:{digits}}{spread}"


@dataclasses.dataclass(frozen=True)
class Standing:
    """One row of the results table; a score is None if a seed diverged or none ran."""

    label: str
    at_steps: Score | None
    at_seconds: Score | None
    seconds_per_step: float | None
    compile_seconds: float
    state_bytes: int
    steps: int
    seconds: float
    note: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Who is best at one point.

    Attributes:
      winner: label of the best mean, or None if nothing can be compared.
      clear: whether the lead over the next is larger than the spread over seeds of both.
      text: the same in a sentence.
    """

    winner: str | None
    clear: bool
    text: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The outcome of a race.

    Attributes:
      metric: name of the held-out metric; lower is better.
      steps: the steps that every compared run reached.
      seconds: the training seconds that every compared run reached.
      standings: best at equal steps first.
      by_steps: who is best at equal steps.
      by_seconds: who is best at equal training seconds.
    """

    metric: str
    steps: int
    seconds: float
    standings: tuple[Standing, ...]
    by_steps: Verdict
    by_seconds: Verdict

    def mark(self, label: str, verdict: Verdict) -> str:
        """Returns ``★`` for a clear winner, ``☆`` for one that leads by less than the spread."""
        if label != verdict.winner:
            return ""
        return "★" if verdict.clear else "☆"


@dataclasses.dataclass(frozen=True)
class Curve:
    """The mean over seeds of one entrant, with the smallest and the largest value."""

    label: str
    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclasses.dataclass(frozen=True)
class Panel:
    """One of the four pictures."""

    title: str
    x_title: str
    y_title: str
    curves: tuple[Curve, ...]
    y_range: tuple[float, float] | None
    band: str = "seeds"  # what the bands around curves span


def compare(runs: Sequence[Run], metric: str) -> Comparison:
    """Compares the entrants of a race at equal steps and at equal training seconds.

    The points are the last ones that every run reached, leaving out runs that diverged or never
    began. Between two evaluations the metric is interpolated linearly.

    Args:
      runs: the runs, stopped or finished.
      metric: name of the held-out metric; lower is better.

    Returns:
      The comparison.

    Example:
      >>> points = [{"step": 2, "seconds": 1.0, "loss": 2.0}]
      >>> run = Run("a", 0, 0.1, 8, step=2, seconds=1.0, status="finished", held_out=points)
      >>> compare([run], "loss").standings[0].at_steps.mean
      2.0
    """
    healthy = [run for run in runs if run.step and run.status != "diverged"]
    steps = min((run.step for run in healthy), default=0)
    seconds = min((run.seconds for run in healthy), default=0.0)
    labels = list(dict.fromkeys(run.label for run in runs))
    standings = [
        _standing([run for run in runs if run.label == label], metric, steps, seconds)
        for label in labels
    ]
    standings.sort(key=lambda row: row.at_steps.mean if row.at_steps else math.inf)
    by_steps = [(row.label, row.at_steps) for row in standings]
    by_seconds = [(row.label, row.at_seconds) for row in standings]
    return Comparison(
        metric=metric,
        steps=steps,
        seconds=seconds,
        standings=tuple(standings),
        by_steps=_verdict(by_steps, metric, f"At equal steps ({steps})"),
        by_seconds=_verdict(
            by_seconds, metric, f"At equal training time ({seconds_text(seconds)})"
        ),
    )


def _standing(runs: Sequence[Run], metric: str, steps: int, seconds: float) -> Standing:
    """Returns the row of one entrant."""
    began = [run for run in runs if run.step]
    diverged = [run for run in runs if run.status == "diverged"]
    notes = []
    if diverged:
        when = min(run.step for run in diverged)
        notes.append(f"diverged at step {when} ({len(diverged)} of {len(runs)} seeds)")
    if len(began) < len(runs):
        notes.append(f"{len(began)} of {len(runs)} seeds ran")
    # The mean of the seeds that survived would flatter a method that loses some.
    comparable = bool(began) and not diverged
    total = sum(run.step for run in began)
    return Standing(
        label=runs[0].label,
        at_steps=_score(began, metric, "step", steps) if comparable else None,
        at_seconds=_score(began, metric, "seconds", seconds) if comparable else None,
        seconds_per_step=sum(run.seconds for run in began) / total if total else None,
        compile_seconds=runs[0].compile_seconds,
        state_bytes=runs[0].state_bytes,
        steps=min(run.step for run in runs),
        seconds=statistics.fmean(run.seconds for run in runs),
        note="; ".join(notes),
    )


def _score(runs: Sequence[Run], metric: str, axis: str, point: float) -> Score:
    """Returns the metric of some runs at one point of the step or seconds axis."""
    values = tuple(
        float(
            np.interp(
                point,
                [row[axis] for row in run.held_out],
                [row[metric] for row in run.held_out],
            )
        )
        for run in runs
    )
    spread = statistics.stdev(values) if len(values) > 1 else None
    return Score(mean=statistics.fmean(values), spread=spread, values=values)


def _verdict(scores: Sequence[tuple[str, Score | None]], metric: str, where: str) -> Verdict:
    """Says who is best, and whether the seeds agree."""
    known = sorted(
        ((label, score) for label, score in scores if score is not None),
        key=lambda item: item[1].mean,
    )
    if not known:
        return Verdict(None, False, f"{where}: nothing to compare.")
    best, score = known[0]
    text = f"{where}: {best} is best, {metric} {score}"
    if len(known) == 1:
        return Verdict(best, False, f"{text}; there is nothing to compare it with.")
    rival, other = known[1]
    lead = f"{other.mean - score.mean:.3g}"
    if score.spread is None or other.spread is None:
        end = f"ahead of {rival} by {lead}; with one seed the spread is unknown."
        return Verdict(best, False, f"{text}, {end}")
    spread = max(score.spread, other.spread)
    if other.mean - score.mean > spread:
        end = f"ahead of {rival} by {lead}, more than the seed spread {spread:.2g}."
        return Verdict(best, True, f"{text}, {end}")
    end = f"but its lead over {rival}, {lead}, is within the seed spread {spread:.2g}."
    return Verdict(best, False, f"{text}, {end}")


def panels(runs: Sequence[Run], metric: str) -> tuple[Panel, ...]:
    """Returns the four pictures of a race: loss and held-out metric, over steps and over seconds.

    Args:
      runs: the runs.
      metric: name of the held-out metric.

    Returns:
      Loss over steps, loss over seconds, metric over steps, metric over seconds.
    """
    held_out = f"held-out {metric}"
    kinds: list[tuple[str, str | None]] = [("training loss", None), (held_out, metric)]
    axes = [("steps", "step"), ("training seconds", "seconds")]
    labels = list(dict.fromkeys(run.label for run in runs))
    found = []
    for y_title, key in kinds:
        for x_title, axis in axes:
            curves = []
            for label in labels:
                points = [_points(run, key) for run in runs if run.label == label and run.step]
                curve = _curve(label, points, axis)
                curves += [curve] if curve.x else []
            title = f"{y_title.capitalize()} over {x_title}"
            found.append(Panel(title, x_title, y_title, tuple(curves), _y_range(curves)))
    return tuple(found)


def _points(run: Run, metric: str | None) -> dict[int, dict[str, float]]:
    """Returns the finite points of a run by step: of a held-out metric, or of the training loss.

    A held-out metric may be called "loss" too, so that None stands for the training loss.
    """
    key = metric or "loss"
    if metric is None:
        rows: list[dict[str, Any]] = [
            {"step": step, "seconds": seconds, "loss": loss} for step, seconds, loss in run.losses
        ]
    else:
        rows = run.held_out
    return {
        int(row["step"]): {"step": row["step"], "seconds": row["seconds"], "value": row[key]}
        for row in rows
        if math.isfinite(row[key])
    }


def _curve(label: str, runs: Sequence[dict[int, dict[str, float]]], axis: str) -> Curve:
    """Averages runs at the steps that all of them have."""
    common = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    columns = [[run[step]["value"] for run in runs] for step in common]
    return Curve(
        label=label,
        x=[statistics.fmean(run[step][axis] for run in runs) for step in common],
        mean=[statistics.fmean(values) for values in columns],
        low=[min(values) for values in columns],
        high=[max(values) for values in columns],
    )


def _y_range(curves: Sequence[Curve]) -> tuple[float, float] | None:
    """Returns a range for the curves after the first tenth, where the drop dwarfs all else."""
    end = max((curve.x[-1] for curve in curves), default=0.0)
    pairs = [
        (low, high)
        for curve in curves
        for x, low, high in zip(curve.x, curve.low, curve.high, strict=True)
        if x >= 0.1 * end
    ]
    if not pairs:
        return None
    bottom, top = min(low for low, _ in pairs), max(high for _, high in pairs)
    # A run that climbs above where it began must not flatten the others.
    top = min(top, max(curve.high[0] for curve in curves))
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 0.05
    return bottom - margin, top + margin
