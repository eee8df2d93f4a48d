"""Writes what a race gave: ``results.json``, a picture, and a page that needs no network."""

import dataclasses
import html
import json
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optkit.cli.logs import finite, write_text
from optkit.cli.racing import Run
from optkit.cli.results import Comparison, Curve, Panel, compare, panels
from optkit.cli.tables import bytes_text, seconds_text

if TYPE_CHECKING:
    import plotly.graph_objects
    from matplotlib.axes import Axes

__all__ = ["RaceReport", "page", "picture", "results", "write_report"]

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7f7f7f",
    "#8c564b",
)
_DASHES = (("solid", "-"), ("dash", "--"), ("dot", ":"), ("dashdot", "-."))
# Plotly's tool bar offers to upload the chart to a server unless told not to.
_CHART_CONFIG = {"displaylogo": False, "showSendToCloud": False, "plotlyServerURL": ""}
_STYLE = """
body { font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 1200px; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .35rem .8rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child, td.note, th.note { text-align: left; }
td.best { font-weight: 600; background: #eef6ee; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; }
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


def write_report(report: RaceReport, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes ``results.json``, ``report.png`` and ``report.html``.

    Args:
      report: what to show.
      out: directory; made when missing.

    Returns:
      The files, in that order.
    """
    out.mkdir(parents=True, exist_ok=True)
    data, image, document = (out / name for name in ("results.json", "report.png", "report.html"))
    write_text(data, json.dumps(finite(results(report)), indent=1, allow_nan=False) + "\n")
    picture(report, image)
    write_text(document, page(report))
    return [data, image, document]


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


def _look(index: int) -> tuple[str, tuple[str, str]]:
    """Returns colour and dash (plotly's name, matplotlib's) of the entrant at `index`."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _looks(report: RaceReport) -> dict[str, tuple[str, tuple[str, str]]]:
    """Returns the look of each entrant, so that it is the same in all panels."""
    labels = dict.fromkeys(run.label for run in report.runs)
    return {label: _look(index) for index, label in enumerate(labels)}


def _headline(report: RaceReport) -> str:
    """Returns the title of a report."""
    seeds = len({run.seed for run in report.runs})
    plural = "" if seeds == 1 else "s"
    return f"optkit race on {report.task['name']}, {seeds} seed{plural}"


def picture(report: RaceReport, path: pathlib.Path) -> None:
    """Draws the four panels in a 2x2 grid.

    Args:
      report: what to show.
      path: a ``.png`` file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure with a canvas of its own needs no display and leaves pyplot's global state alone.
    figure = Figure(figsize=(13, 9), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    looks = _looks(report)
    for ax, panel in zip(axes.flat, panels(report.runs, report.metric), strict=True):
        _draw(ax, panel, looks)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))
    comparison = report.comparison
    lines = [_headline(report)]
    for verdict in (comparison.by_steps, comparison.by_seconds):
        lines += textwrap.wrap(verdict.text, width=140)
    figure.suptitle("\n".join(lines), fontsize=11)
    canvas.print_figure(path, dpi=110, format="png")


def _draw(ax: "Axes", panel: Panel, looks: Mapping[str, tuple[str, tuple[str, str]]]) -> None:
    """Draws one panel with matplotlib."""
    for curve in panel.curves:
        colour, (_, dash) = looks[curve.label]
        marker = "o" if len(curve.x) <= 40 else None
        ax.plot(curve.x, curve.mean, dash, color=colour, label=curve.label, marker=marker, ms=3)
        ax.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_title)
    ax.set_ylabel(panel.y_title)
    if panel.y_range:
        ax.set_ylim(*panel.y_range)
    ax.grid(visible=True, alpha=0.3)


def page(report: RaceReport) -> str:
    """Returns a page with curves, table, configuration and versions, all in one file.

    Args:
      report: what to show.

    Returns:
      HTML that loads nothing from elsewhere.
    """
    import plotly.io

    figure = _figure(report)
    chart = plotly.io.to_html(
        figure, include_plotlyjs=True, full_html=False, config=dict(_CHART_CONFIG)
    )
    comparison = report.comparison
    stopped = "<p class=warn>Stopped by Ctrl-C: this shows what had run.</p>"
    setup = json.dumps(finite({"task": report.task, **report.settings}), indent=2, default=str)
    title = html.escape(_headline(report))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head>
<body><h1>{title}</h1>
<p>{html.escape(str(report.task["description"]))}</p>
{stopped if report.interrupted else ""}
<p>{html.escape(comparison.by_steps.text)}<br>{html.escape(comparison.by_seconds.text)}</p>
{_table(comparison)}
<p>Held-out {html.escape(report.metric)}: lower is better, mean ± standard deviation over seeds.
★ best by more than the spread over seeds; ☆ best, but not by more than that. Training time leaves
out compilation and evaluation; between two evaluations the metric is interpolated. Bands in the
curves span the seeds.</p>
{chart}
<h2>Configuration</h2><pre>{html.escape(setup)}</pre>
<h2>Versions</h2><pre>{html.escape(json.dumps(dict(report.versions), indent=2))}</pre>
</body></html>
"""


def _table(comparison: Comparison) -> str:
    """Returns the results table as HTML."""
    heads = [
        f"at {comparison.steps} steps",
        f"at {comparison.seconds:.1f} s",
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


def _figure(report: RaceReport) -> "plotly.graph_objects.Figure":
    """Returns the four panels as a plotly figure."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    drawn = panels(report.runs, report.metric)
    titles = [panel.title for panel in drawn]
    figure = make_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.14)
    looks = _looks(report)
    for index, panel in enumerate(drawn):
        place: dict[str, Any] = {"row": index // 2 + 1, "col": index % 2 + 1}
        for curve in panel.curves:
            colour, (dash, _) = looks[curve.label]
            band, line = _band(curve), {"color": colour, "dash": dash}
            shared = {"legendgroup": curve.label, "name": curve.label}
            figure.add_trace(
                go.Scatter(
                    **band,
                    **shared,
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.15,
                    line={"width": 0},
                    showlegend=False,
                    hoverinfo="skip",
                ),
                **place,
            )
            figure.add_trace(
                go.Scatter(x=curve.x, y=curve.mean, **shared, line=line, showlegend=index == 0),
                **place,
            )
        figure.update_xaxes(title_text=panel.x_title, **place)
        figure.update_yaxes(title_text=panel.y_title, range=panel.y_range, **place)
    legend = {"orientation": "h", "y": 1.05, "yanchor": "bottom"}
    figure.update_layout(height=850, template="plotly_white", hovermode="closest", legend=legend)
    return figure


def _band(curve: Curve) -> dict[str, list[float]]:
    """Returns the outline of the area between the smallest and the largest value."""
    return {"x": curve.x + curve.x[::-1], "y": curve.high + curve.low[::-1]}
