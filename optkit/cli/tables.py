"""What the terminal shows: tables of methods and of race results."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from optkit.catalogue import Entry
from optkit.cli.values import show_value

if TYPE_CHECKING:
    from optkit.cli.results import Comparison

__all__ = [
    "bytes_text",
    "method_table",
    "method_text",
    "result_table",
    "seconds_text",
    "state_text",
]


def bytes_text(count: int) -> str:
    """Returns a number of bytes in the unit that reads best.

    Args:
      count: bytes.

    Returns:
      Text.

    Example:
      >>> bytes_text(512), bytes_text(3_500_000)
      ('512 B', '3.50 MB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def seconds_text(seconds: float | None) -> str:
    """Returns a duration in the unit that reads best.

    Args:
      seconds: the duration, or None if unknown.

    Returns:
      Text.

    Example:
      >>> seconds_text(0.0123), seconds_text(75.0)
      ('12.30 ms', '75.0 s')
    """
    if seconds is None:
        return "–"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.1f} s"


def state_text(entry: Entry) -> str:
    """Returns the state bytes per float32 parameter of a method, by role.

    Args:
      entry: the method.

    Returns:
      Text such as ``4`` or ``matrix 4, * 8``.
    """
    sizes = entry.state_bytes
    if set(sizes) == {"*"}:
        return f"{sizes['*']:g}"
    return ", ".join(f"{role} {size:g}" for role, size in sizes.items()) or "–"


def _range_text(entry: Entry) -> str:
    """Returns the least and the most state bytes per float32 parameter over the roles."""
    low, high = min(entry.state_bytes.values()), max(entry.state_bytes.values())
    return f"{low:g}" if low == high else f"{low:g}–{high:g}"


def method_table(entries: Iterable[Entry]) -> Table:
    """Returns the table of ``optkit list``.

    Args:
      entries: the methods.

    Returns:
      A rich table.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("family", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    table.add_column("paper", no_wrap=True)
    table.add_column("summary", min_width=24)
    for entry in entries:
        paper = (entry.paper.arxiv or str(entry.paper.year)) if entry.paper else "–"
        cells = (entry.name, entry.family, _range_text(entry), paper, entry.summary)
        table.add_row(*(Text(cell) for cell in cells))
    table.caption = "bytes: optimizer state per float32 parameter, lowest to highest over the roles"
    table.caption_justify = "left"
    return table


def method_text(entry: Entry) -> Table:
    """Returns the sheet of ``optkit show``.

    Args:
      entry: the method.

    Returns:
      A rich table of two columns.
    """
    sheet = Table(box=None, show_header=False, pad_edge=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column()
    paper = "–"
    if entry.paper is not None:
        source = f"arXiv:{entry.paper.arxiv}, " if entry.paper.arxiv else ""
        paper = f"{entry.paper.title} ({source}{entry.paper.year})"
    parameters = entry.hyperparameters().values()
    lines = [
        str(par)
        if par.default is par.empty
        else f"{par.name} = {show_value(par.default)}"
        if par.kind is not par.VAR_KEYWORD
        else f"**{par.name}"
        for par in parameters
    ]
    rows = [
        ("name", entry.name),
        ("kind", f"{entry.kind}, family {entry.family}"),
        ("summary", entry.summary),
        ("paper", paper),
        ("chain", entry.chain),
        ("state bytes", f"{state_text(entry)} per float32 parameter"),
        ("tags", ", ".join(entry.tags) or "–"),
        ("parameters", "\n".join(lines)),
    ]
    for name, value in rows:
        sheet.add_row(name, Text(str(value)))
    return sheet


def result_table(comparison: "Comparison") -> Table:
    """Returns the table that ends a race.

    Args:
      comparison: the standings.

    Returns:
      A rich table; the winner of each column is marked.
    """
    title = f"held-out {comparison.metric} (lower is better)"
    table = Table(header_style="bold", title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("method", style="bold", min_width=14, overflow="fold")
    table.add_column(f"at {comparison.steps} steps", justify="right", no_wrap=True)
    table.add_column(f"at {seconds_text(comparison.seconds)}", justify="right", no_wrap=True)
    for head in ("time/step", "state"):
        table.add_column(head, justify="right", no_wrap=True)
    noted = any(row.note for row in comparison.standings)
    if noted:
        table.add_column("note")
    for row in comparison.standings:
        scores = []
        for score, verdict in (
            (row.at_steps, comparison.by_steps),
            (row.at_seconds, comparison.by_seconds),
        ):
            mark = comparison.mark(row.label, verdict)
            text = "–" if score is None else f"{score} {mark or ' '}"
            scores.append(Text(text, style="bold green" if mark else ""))
        table.add_row(
            Text(row.label),
            *scores,
            seconds_text(row.seconds_per_step),
            bytes_text(row.state_bytes),
            *([Text(row.note)] if noted else []),
        )
    return table
