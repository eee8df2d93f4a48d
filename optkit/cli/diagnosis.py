"""Pictures of what ``--diagnose`` measures: by leaf or layer for one run, by entrant for a race."""

import dataclasses
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from optkit.cli.racing import Run
from optkit.cli.results import Curve, Panel

__all__ = ["attention_panels", "entrant_panels", "leaf_panels", "spectrum_panels"]

_METRICS = {
    "update_to_weight": "log10 of update to weight",
    "top_singular": "top singular value",
    "stable_rank": "stable rank",
    "gradient_rms": "log10 of gradient",
}
_SPECTRUM = {
    "effective_rank": "effective rank",
    "median_singular": "median singular value",
}
_ATTENTION = {
    "entropy": "entropy of heads (nats)",
    "max_logit": "largest logit of heads",
    "mean_similarity": "similarity of heads",
    "spectral_gap": "spectral gap of similarities",
}
_GROUPS = {"Sizes": _METRICS, "Spectra": _SPECTRUM, "Attention": _ATTENTION}
_BY_LOGARITHM = ("update_to_weight", "gradient_rms")
_MOST = 16  # curves that a panel can show


def _seen(metric: str, value: float | None) -> float:
    """A value as it is drawn; the log has None for what is not finite."""
    if value is None:
        return math.nan
    return _logarithm(value) if metric in _BY_LOGARITHM else value


def _logarithm(value: float | None) -> float:
    return math.log10(value) if value is not None and value > 0 else math.nan


def _leaves(numbers: Mapping[str, float | None], metric: str) -> dict[str, float]:
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
    measured = _measured(rows)
    first = measured[0]["diagnostics"] if measured else {}
    chosen = list(dict.fromkeys([*_paths(first, "top_singular"), *_paths(first, "weight_rms")]))
    return [_over_steps(measured, *pair, chosen) for pair in _METRICS.items()]


def spectrum_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Returns four panels of the spectra of one run, a curve a hidden matrix.

    Args:
      rows: of the log; those without ``spectra`` are passed over.

    Returns:
      Effective rank, median singular value, and the singular values as they were measured first
      and last, on one scale; none if no spectra were measured.
    """
    measured = [row for row in _measured(rows) if row.get("spectra")]
    if not measured:
        return []
    chosen = _paths(measured[0]["diagnostics"], "effective_rank")
    panels = [_over_steps(measured, *pair, chosen) for pair in _SPECTRUM.items()]
    ends = [_spectra(row, chosen) for row in (measured[0], measured[-1])]
    values = [y for panel in ends for curve in panel.curves for y in curve.mean]
    if values:
        margin = 0.05 * (max(values) - min(values)) or 0.05
        y_range = (min(values) - margin, max(values) + margin)
        ends = [dataclasses.replace(panel, y_range=y_range) for panel in ends]
    return panels + ends


def attention_panels(rows: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Returns four panels of the attention of one run, a curve a layer.

    Args:
      rows: of the log; those without statistics of attention are passed over.

    Returns:
      Entropy and largest logit, means over heads in bands that span them, then similarity and
      spectral gap of the heads; none if no attention was measured.
    """
    layers = _paths(next(iter(_measured(rows)), {}).get("diagnostics", {}), "entropy_mean")
    measured = _measured(rows) if layers else []
    return [_over_steps(measured, *pair, layers) for pair in _ATTENTION.items()] if layers else []


def _measured(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get("diagnostics")]


def _paths(numbers: Mapping[str, Any], metric: str) -> list[str]:
    """What a metric was measured of."""
    return [key.removesuffix(f"/{metric}") for key in numbers if key.endswith(f"/{metric}")]


def _over_steps(
    rows: Sequence[Mapping[str, Any]], metric: str, title: str, paths: Sequence[str]
) -> Panel:
    """Returns a panel of one metric, a curve a path: of a layer's heads mean and range."""
    curves = []
    heads = metric in ("entropy", "max_logit")
    for path in paths[:_MOST]:
        points = {}
        for row in rows:
            table = _leaves(row["diagnostics"], metric)
            own = [y for name, y in table.items() if (_layer(name) if heads else name) == path]
            if own:
                points[row["step"]] = own
        if points:
            every = points.values()
            mean, low, high = ([f(ys) for ys in every] for f in (statistics.fmean, min, max))
            curves.append(Curve(path, [*points], mean, low, high))
    panel = Panel(title.capitalize(), "steps", title, tuple(curves), None)
    return dataclasses.replace(panel, band="heads") if heads else panel


def _layer(head: str) -> str:
    """The path of a layer from ``path[head]``."""
    return re.sub(r"\[\d+\]$", "", head)


def _spectra(row: Mapping[str, Any], paths: Sequence[str]) -> Panel:
    """Returns the singular values of one row, by their ranks."""
    curves = []
    for path in paths[:_MOST]:
        logs = enumerate(map(_logarithm, row["spectra"].get(path, ())), start=1)
        points = [(rank, value) for rank, value in logs if math.isfinite(value)]
        if points:
            x, y = (list(side) for side in zip(*points, strict=True))
            curves.append(Curve(path, x, y, y, y))
    title = f"Singular values, row of step {row['step']}"
    return Panel(title, "from the largest down", "log10 of singular value", tuple(curves), None)


def entrant_panels(runs: Sequence[Run]) -> dict[str, list[Panel]]:
    """Returns panels of a race by group: the median over leaves and seeds of each entrant.

    Args:
      runs: the runs, with what was measured.

    Returns:
      ``Sizes``, four panels as of ``leaf_panels``, and where they were measured ``Spectra``, two,
      and ``Attention``, four; bands span the middle half of leaves, layers or heads.
    """
    groups = {name: _of_entrants(runs, metrics) for name, metrics in _GROUPS.items()}
    return {
        name: panels
        for name, panels in groups.items()
        if name == "Sizes" or any(panel.curves for panel in panels)
    }


def _of_entrants(runs: Sequence[Run], metrics: Mapping[str, str]) -> list[Panel]:
    panels = []
    for metric, title in metrics.items():
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
