"""The panels of a report, drawn once: a PNG, and an SVG whose points tell their values."""

import html
import io
import itertools
import math
import pathlib
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from optkit.cli.results import Curve, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["drawing", "picture"]

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
_DASHES = ("-", "--", ":", "-.")
_WIDTH, _ROW = 13, 4.5  # inches
_POINTS = 72  # of an SVG, per inch
_HOVERS = 120  # most points of a curve that tell their value


def picture(drawn: Sequence[Panel], path: pathlib.Path, *, caption: Sequence[str]) -> None:
    """Draws the panels as a PNG, two in a row and one alone.

    Args:
      drawn: an even number of panels, or one.
      path: a ``.png`` file.
      caption: paragraphs above the panels.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _figure(drawn)
    lines = [line for text in caption for line in textwrap.wrap(text, width=140)]
    figure.suptitle("\n".join(lines), fontsize=11)
    FigureCanvasAgg(figure).print_figure(path, dpi=110, format="png")


def drawing(drawn: Sequence[Panel]) -> str:
    """Draws the same panels as an SVG element for a page.

    Each point has a title of its own, which browsers show under the pointer. So a page needs no
    script; a charting library inside it would weigh megabytes.

    Args:
      drawn: an even number of panels, or one.

    Returns:
      The element, as wide as the page.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # Text stays text, and equal races give equal pages.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "optkit"}), io.StringIO() as file:
        figure = _figure(drawn)
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        text = file.getvalue()
    width, height = (inches * _POINTS for inches in figure.get_size_inches())
    body = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    body = body[body.index(">") + 1 : body.rindex("</svg>")]
    hovers = "".join(
        circle
        for ax, panel in zip(figure.axes, drawn, strict=True)
        for curve in panel.curves
        for circle in _hovers(ax, panel, curve, height)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}">{body}<g class="points">{hovers}</g></svg>'
    )


def _figure(drawn: Sequence[Panel]) -> "Figure":
    """Returns the panels with a legend below them."""
    from matplotlib.figure import Figure

    # A figure of its own needs no display and leaves pyplot's global state alone.
    rows, columns = (len(drawn) // 2, 2) if len(drawn) > 1 else (1, 1)
    height = _ROW * max(rows, 2 if columns == 1 else 1)
    figure = Figure(figsize=(_WIDTH, height), dpi=_POINTS, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    names = dict.fromkeys(curve.label for panel in drawn for curve in panel.curves)
    looks = {label: _look(index) for index, label in enumerate(names)}
    for ax, panel in zip(axes.flat, drawn, strict=True):
        _draw(ax, panel, looks)
    found = (ax.get_legend_handles_labels() for ax in axes.flat)
    shown = {label: handle for pair in found for handle, label in zip(*pair, strict=True)}
    if shown:
        ncols = min(4, len(shown))
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=ncols)
    return figure


def _look(index: int) -> tuple[str, str]:
    """Returns colour and dash of the entrant at `index`, so that it looks alike in all panels."""
    return _COLOURS[index % len(_COLOURS)], _DASHES[index // len(_COLOURS) % len(_DASHES)]


def _draw(ax: "Axes", panel: Panel, looks: Mapping[str, tuple[str, str]]) -> None:
    """Draws one panel."""
    for curve in panel.curves:
        colour, dash = looks[curve.label]
        marker = "o" if len(curve.x) <= 40 else None
        ax.plot(curve.x, curve.mean, dash, color=colour, label=curve.label, marker=marker, ms=3)
        ax.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x_title)
    ax.set_ylabel(panel.y_title)
    if panel.y_range:
        ax.set_ylim(*panel.y_range)
    ax.grid(visible=True, alpha=0.3)


def _hovers(ax: "Axes", panel: Panel, curve: Curve, height: float) -> Iterator[str]:
    """Yields an invisible circle with a title for points of a curve that are inside the panel."""
    stride = math.ceil(len(curve.x) / _HOVERS)
    points = zip(curve.x, curve.mean, curve.low, curve.high, strict=True)
    for x, mean, low, high in itertools.islice(points, 0, None, stride):
        left, up = ax.transData.transform((x, mean))
        if not ax.bbox.contains(left, up):
            continue
        spread = "" if low == high else f" ({panel.band} {low:.4g} to {high:.4g})"
        title = f"{curve.label}: {panel.y_title} {mean:.4g}{spread} at {x:.5g} {panel.x_title}"
        yield (
            f'<circle cx="{left:.1f}" cy="{height - up:.1f}" r="5">'
            f"<title>{html.escape(title)}</title></circle>"
        )
