"""Writes what a race gave: ``results.json``, a picture, and a page that needs no network."""

import dataclasses
import html
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from optkit.cli.chart import drawing, picture
from optkit.cli.diagnosis import attention_panels, entrant_panels, leaf_panels, spectrum_panels
from optkit.cli.errors import CommandError
from optkit.cli.logs import finite, write_text
from optkit.cli.racing import Run
from optkit.cli.results import Comparison, compare, panels
from optkit.cli.tables import bytes_text, seconds_text
from optkit.cli.training import LOG_NAME, saved_steps

__all__ = [
    "RaceReport",
    "check_free",
    "document",
    "page",
    "results",
    "write_diagnostics",
    "write_report",
]

_FILES = ("results.json", "report.png", "report.html")
_ON_THE_CLOCK = (
    "Times contain what --diagnose measures of sizes and singular values; "
    "state leaves out what it keeps."
)

_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.note, th.note { text-align: left; }
td.best { font-weight: 600; background: #eef6ee; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
svg { width: 100%; height: auto; }
.points circle { fill: transparent; }
.points circle:hover { fill: #0004; }
.warn { background: #fff4e0; padding: .5rem .8rem; }
"""


@dataclasses.dataclass(frozen=True)
class RaceReport:
    """Everything that a report shows.

    Attributes:
      task: name, description and options of the task.
      settings: how the race was run, as JSON values.
      versions: versions and device.
      runs: the runs.
      metric: name of the held-out metric.
      interrupted: whether Ctrl-C stopped the race.
    """

    task: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    runs: Sequence[Run]
    metric: str
    interrupted: bool

    @property
    def comparison(self) -> Comparison:
        """The standings."""
        return compare(self.runs, self.metric)

    @property
    def timing(self) -> str:
        """What a diagnosis did to the times; empty if there was none."""
        return "" if self.settings.get("diagnose") is None else _ON_THE_CLOCK


def check_free(out: pathlib.Path, *, overwrite: bool) -> None:
    """Refuses a directory whose files a report would replace or be mixed with.

    Args:
      out: where the report is to go.
      overwrite: whether an earlier race there may be replaced; a training run never is.

    Raises:
      CommandError: for such a directory, or a file of that name.
    """
    if out.exists() and not out.is_dir():
        raise CommandError(f"{out} is a file: give a directory as --out")
    if (out / LOG_NAME).exists() or saved_steps(out):
        raise CommandError(f"{out} holds a training run: give another --out")
    found = [name for name in _FILES if (out / name).exists()]
    if found and not overwrite:
        raise CommandError(
            f"{out} already holds a race ({', '.join(found)}): "
            "pass --overwrite to replace it, or another --out"
        )


def write_report(report: RaceReport, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes ``results.json``, ``report.png`` and ``report.html``.

    Args:
      report: what to show.
      out: directory; made when missing.

    Returns:
      The files, in that order.
    """
    out.mkdir(parents=True, exist_ok=True)
    data, image, written = (out / name for name in _FILES)
    write_text(data, json.dumps(finite(results(report)), indent=1, allow_nan=False) + "\n")
    verdicts = (report.comparison.by_steps.text, report.comparison.by_seconds.text)
    drawn = panels(report.runs, report.metric)
    picture(drawn, image, caption=[_headline(report), *verdicts])
    write_text(written, page(report))
    return [data, image, written]


def results(report: RaceReport) -> dict[str, Any]:
    """Returns a report as JSON values.

    Args:
      report: what to show.

    Returns:
      Task, settings, versions, comparison and every curve.
    """
    return {
        "task": dict(report.task),
        "settings": dict(report.settings),
        "versions": dict(report.versions),
        "interrupted": report.interrupted,
        "comparison": dataclasses.asdict(report.comparison),
        "runs": [dataclasses.asdict(run) for run in report.runs],
    }


def _headline(report: RaceReport) -> str:
    """Returns the title of a report."""
    seeds = len({run.seed for run in report.runs})
    plural = "" if seeds == 1 else "s"
    return f"optkit race on {report.task['name']}, {seeds} seed{plural}"


def page(report: RaceReport) -> str:
    """Returns a page with curves, table, configuration and versions, all in one file.

    Args:
      report: what to show.

    Returns:
      HTML that loads nothing from elsewhere.
    """
    comparison = report.comparison
    stopped = "<p class=warn>Stopped by Ctrl-C: this shows what had run.</p>"
    setup = json.dumps(finite({"task": report.task, **report.settings}), indent=2, default=str)
    body = f"""<p>{html.escape(str(report.task["description"]))}</p>
{stopped if report.interrupted else ""}
<p>{html.escape(comparison.by_steps.text)}<br>{html.escape(comparison.by_seconds.text)}</p>
{_table(comparison)}
<p>Held-out {html.escape(report.metric)}: lower is better, mean ± standard deviation over seeds.
★ best by more than the spread over seeds; ☆ best, but not by more than that. Training time leaves
out compilation and evaluation; between two evaluations the metric is interpolated. Bands in the
curves span the seeds; point at a curve to read its values. {report.timing}</p>
{drawing(panels(report.runs, report.metric))}{_diagnostics(report.runs)}
<h2>Configuration</h2><pre>{html.escape(setup)}</pre>
<h2>Versions</h2><pre>{html.escape(json.dumps(dict(report.versions), indent=2))}</pre>
"""
    return document(_headline(report), body)


def _diagnostics(runs: Sequence[Run]) -> str:
    """Returns what was measured of each entrant, or nothing."""
    if not any(run.diagnostics for run in runs):
        return ""
    text = (
        "Medians over leaves (or hidden matrices, layers, heads) and seeds, and their middle half."
    )
    drawn = "".join(
        f"<h3>{title}</h3>{drawing(found)}" for title, found in entrant_panels(runs).items()
    )
    return f"<h2>Diagnostics</h2><p>{text}</p>{drawn}"


def write_diagnostics(rows: Sequence[Mapping[str, Any]], title: str, file: pathlib.Path) -> None:
    """Writes what a training run measured as a page, a curve a leaf or a layer of attention.

    Args:
      rows: of its log.
      title: of the page.
      file: an ``.html`` file.
    """
    text = "Measured every few steps; point at a curve to read its values."
    sections = {
        "Sizes": leaf_panels(rows),
        "Spectra": spectrum_panels(rows),
        "Attention": attention_panels(rows),
    }
    drawn = "".join(
        f"<h2>{name}</h2>{drawing(panels)}" for name, panels in sections.items() if panels
    )
    write_text(file, document(title, f"<p>{text}</p>{drawn}"))


def document(title: str, body: str) -> str:
    """Returns a page that loads nothing from elsewhere.

    Args:
      title: its title, text.
      body: what follows the title, HTML.

    Returns:
      HTML.
    """
    title = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
{body}</body></html>
"""


def _table(comparison: Comparison) -> str:
    """Returns the results table as HTML."""
    heads = [
        f"at {comparison.steps} steps",
        f"at {seconds_text(comparison.seconds)}",
        "time per step",
        "compilation",
        "state",
    ]
    head = "".join(f"<th>{text}</th>" for text in heads)
    rows = []
    for row in comparison.standings:
        cells = "".join(
            f'<td class="{"best" if verdict.winner == row.label else ""}">'
            f"{score if score else '–'} {comparison.mark(row.label, verdict)}</td>"
            for score, verdict in (
                (row.at_steps, comparison.by_steps),
                (row.at_seconds, comparison.by_seconds),
            )
        )
        rest = "".join(
            f"<td>{text}</td>"
            for text in (
                seconds_text(row.seconds_per_step),
                seconds_text(row.compile_seconds),
                bytes_text(row.state_bytes),
            )
        )
        note = f"<td class=note>{html.escape(row.note)}</td>"
        rows.append(f"<tr><td>{html.escape(row.label)}</td>{cells}{rest}{note}</tr>")
    return (
        f"<table><thead><tr><th>method</th>{head}<th class=note></th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
