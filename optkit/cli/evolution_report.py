"""The report of a run of a population: pictures of its fitnesses, and a page around them."""

import html
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from optkit.cli.chart import drawing, picture
from optkit.cli.logs import finite, write_text
from optkit.cli.report import document
from optkit.cli.results import Curve, Panel
from optkit.cli.running import versions
from optkit.cli.tables import seconds_text
from optkit.cli.training import Outcome

__all__ = ["evolution_panels", "write_evolution_report"]

Rows = Sequence[dict[str, Any]]


def write_evolution_report(outcome: Outcome, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes ``report.png`` and ``report.html`` beside the log.

    Args:
      outcome: how the run ended, with its rows.
      out: its directory.

    Returns:
      The files, in that order.
    """
    settings = outcome.settings
    metric = settings.make_task(settings.task, settings.task_options).metric
    drawn = evolution_panels(outcome.rows, metric)
    image, page = out / "report.png", out / "report.html"
    title = f"{settings.method} on {settings.task}, seed {settings.seed}"
    summary = _summary(outcome.rows, metric)
    picture(drawn, image, caption=[title, summary])
    stopped = "<p class=warn>Stopped before its last generation.</p>" if outcome.stopped else ""
    setup = json.dumps(finite(settings.record()), indent=2, default=str)
    body = f"""<p>{html.escape(summary)}</p>
{stopped}
<p>Fitness of the members of each generation: their mean, with one deviation to each side, and the
best. The {html.escape(metric)} is that of the unperturbed model, on episodes or examples that stay
the same. Seconds leave out compilation and this score; point at a curve to read its values.</p>
{drawing(drawn)}
<h2>Configuration</h2><pre>{html.escape(setup)}</pre>
<h2>Versions</h2><pre>{html.escape(json.dumps(versions(), indent=2))}</pre>
"""
    write_text(page, document(title, body))
    return [image, page]


def evolution_panels(rows: Rows, metric: str) -> tuple[Panel, ...]:
    """Returns the four pictures of a run.

    Args:
      rows: the rows of its log.
      metric: name of the score.

    Returns:
      Fitness over generations, over evaluations and over seconds; score over generations.
    """
    axes = [("generations", "step"), ("evaluations", "evaluations"), ("seconds", "seconds")]
    found = []
    for title, axis in axes:
        both = (_curve("best", rows, axis, "fitness_best"), _mean(rows, axis))
        curves = tuple(curve for curve in both if curve.x)
        name = f"Fitness over {title}"
        found.append(Panel(name, title, "fitness", curves, None, "one deviation"))
    scored = [
        {"step": row["step"], "score": row["held_out"][metric]} for row in rows if "held_out" in row
    ]
    score = _curve(f"{metric} of the unperturbed model", scored, "step", "score")
    name = f"{metric.capitalize()} over generations"
    found.append(Panel(name, "generations", metric, (score,) if score.x else (), None))
    return tuple(found)


def _known(rows: Rows, *names: str) -> list[dict[str, Any]]:
    """Returns the rows that have these numbers; the log has None for what is not finite."""
    return [row for row in rows if all(row.get(name) is not None for name in names)]


def _curve(label: str, rows: Rows, axis: str, name: str) -> Curve:
    known = _known(rows, axis, name)
    values = [float(row[name]) for row in known]
    return Curve(label, [float(row[axis]) for row in known], values, values, values)


def _mean(rows: Rows, axis: str) -> Curve:
    """Returns the mean fitness with a band of one deviation."""
    known = _known(rows, axis, "fitness_mean", "fitness_std")
    return Curve(
        "mean",
        [float(row[axis]) for row in known],
        [row["fitness_mean"] for row in known],
        [row["fitness_mean"] - row["fitness_std"] for row in known],
        [row["fitness_mean"] + row["fitness_std"] for row in known],
    )


def _summary(rows: Rows, metric: str) -> str:
    """Says in a sentence where the run is."""
    measured = [row for row in rows if "fitness_mean" in row]
    if not measured:
        return "No generation was measured."
    last = measured[-1]
    scored = [row for row in rows if "held_out" in row][-1]
    seconds = last["seconds"]
    speed = f", {last['evaluations'] / seconds:.0f} evaluations/s" if seconds else ""
    return (
        f"Generation {last['step']}: {last['evaluations']} evaluations in {seconds_text(seconds)}"
        f"{speed}; fitness mean {_text(last['fitness_mean'])}, best {_text(last['fitness_best'])}; "
        f"{metric} of the unperturbed model {_text(scored['held_out'][metric])} "
        f"at generation {scored['step']}."
    )


def _text(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
