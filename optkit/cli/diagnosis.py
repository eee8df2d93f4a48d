"""Pictures of what ``--diagnose`` measures: by leaf for one run, by entrant for a race."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optkit.cli.racing import Run
from optkit.cli.results import Curve, Panel

__all__ = ["entrant_panels", "leaf_panels"]

_METRICS = {
    "update_to_weight": "log10 of update to weight",
    "top_singular": "top singular value",
    "stable_rank": "stable rank",
    "gradient_rms": "log10 of gradient",
}
_MOST = 16  # curves that a panel can show


def _seen(metric: str, value: float) -> float:
    """A value as it is drawn."""
    if metric in ("top_singular", "stable_rank"):
        return value
    return math.log10(value) if value > 0 else math.nan


def _leaves(numbers: Mapping[str, float], metric: str) -> dict[str, float]:
    """The drawable values of a metric by leaf."""
    end = f"/{metric}"
    found = {k.removesuffix(end): _seen(metric, v) for k, v in numbers.items() if k.endswith(end)}
    return {path: value for path, value in found.items() if math.isfinite(value)}


def leaf_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Returns four panels of one run, a curve a leaf: matrices first, no more than a panel holds.

    Args:
      rows: of the log; those without ``diagnostics`` are passed over.

    Returns:
      Ratio of update to weight, top singular value, stable rank, size of gradients.
    """
    measured = [row for row in rows if row.get("diagnostics")]
    first = measured[0]["diagnostics"] if measured else {}
    matrices = [key.removesuffix("/top_singular") for key in first if key.endswith("/top_singular")]
    others = [key.removesuffix("/weight_rms") for key in first if key.endswith("/weight_rms")]
    chosen = list(dict.fromkeys([*matrices, *others]))[:_MOST]
    panels = []
    for metric, title in _METRICS.items():
        tables = [(row["step"], _leaves(row["diagnostics"], metric)) for row in measured]
        curves = []
        for path in chosen:
            points = [(step, table[path]) for step, table in tables if path in table]
            if points:
                x, y = (list(side) for side in zip(*points, strict=True))
                curves.append(Curve(path, x, y, y, y))
        panels.append(Panel(title.capitalize(), "steps", title, tuple(curves), None))
    return panels


def entrant_panels(runs: Sequence[Run]) -> list[Panel]:
    """Returns four panels of a race: the median over leaves and seeds of each entrant.

    Args:
      runs: the runs, with what was measured.

    Returns:
      As ``leaf_panels``; bands span the middle half of the leaves.
    """
    panels = []
    for metric, title in _METRICS.items():
        curves = []
        for label in dict.fromkeys(run.label for run in runs):
            by_step: dict[float, list[float]] = {}
            for run in runs:
                for row in run.diagnostics if run.label == label else ():
                    values = _leaves(row["values"], metric).values()
                    by_step.setdefault(row["step"], []).extend(values)
            points = {step: sorted(values) for step, values in sorted(by_step.items()) if values}
            low, mid, high = (
                [_quantile(values, share) for values in points.values()]
                for share in (0.25, 0.5, 0.75)
            )
            curves += [Curve(label, [*points], mid, low, high)] if points else []
        panels.append(
            Panel(title.capitalize(), "steps", title, tuple(curves), None, "middle half of leaves")
        )
    return panels


def _quantile(values: Sequence[float], share: float) -> float:
    if share == 0.5:
        return statistics.median(values)
    return values[min(len(values) - 1, int(share * len(values)))]
