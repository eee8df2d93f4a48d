"""What the terminal shows: tables of methods and of race results."""

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from optkit.catalogue import Entry, LeafBytes, StateBytes
from optkit.cli.docs import arguments, body, first_sentence, plain_marks, section, wrapped
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

_KINDS = (
    *("recipe", "wrapper", "part", "strategy", "gradient"),
    *("aggregate", "federated", "outer", "solver"),
)
_WIDE = 100  # columns from which on `optkit list` shows the papers
_READABLE = 100  # columns that prose takes at most


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
      Text such as ``8`` or ``4 on matrix, conv; 8 elsewhere``.

    Example:
      >>> import optkit
      >>> state_text(optkit.catalogue.get("lion"))
      '4'
    """
    roles: dict[str, list[str]] = {}
    for role, size in entry.state_bytes.items():
        roles.setdefault(_size_text(size), []).append(role)
    if list(roles.values()) == [["*"]]:
        return next(iter(roles))
    return "; ".join(
        f"{size} elsewhere" if names == ["*"] else f"{size} on {', '.join(names)}"
        for size, names in sorted(roles.items(), key=lambda item: item[1] == ["*"])
    ).replace("*", "other roles")


def _size_text(size: float) -> str:
    """Returns bytes per parameter, and in words what comes on top or is different."""
    if isinstance(size, StateBytes) and float(size) == 0.0:
        return size.label
    text = str(size) if isinstance(size, StateBytes | LeafBytes) else f"{size:g}"
    return f"−{text[1:]}" if size < 0 else text


def _range_text(entry: Entry) -> str:
    """Returns the least and the most state bytes per float32 parameter over the roles."""
    sizes = entry.state_bytes.values()
    low, high = min(sizes), max(sizes)
    text = _number(low)
    if low != high:
        # A dash beside a minus would read as another.
        text += f"{' to ' if low < 0 else '–'}{_number(high)}"
    more = "*" if any(isinstance(size, StateBytes | LeafBytes) for size in sizes) else ""
    return f"{'+' if entry.kind == 'wrapper' and low >= 0 else ''}{text}{more}"


def _number(size: float) -> str:
    """Returns bytes in three digits, with a true minus."""
    return f"{float(size):.3g}".replace("-", "−")


def method_table(entries: Iterable[Entry], *, width: int) -> Table:
    """Returns the table of ``optkit list``: families with recipes first, one line a method.

    Args:
      entries: the methods.
      width: columns of the terminal; a narrow one shows no papers, and cuts long summaries.

    Returns:
      A rich table.
    """
    families: dict[str, list[Entry]] = {}
    for entry in entries:
        families.setdefault(entry.family, []).append(entry)
    heads = ["family, name", "kind", "bytes", *(["paper"] if width >= _WIDE else [])]
    rows = [(entry, _cells(entry)[: len(heads)]) for group in families.values() for entry in group]
    table = Table(box=None, pad_edge=False, header_style="bold")
    room = width
    for index, head in enumerate(heads):
        size = max(len(head), *(len(cells[index]) for _, cells in rows))
        table.add_column(head, justify="right" if head == "bytes" else "left", width=size)
        room -= size + 2
    table.add_column("summary", no_wrap=True)
    for family in sorted(families, key=lambda name: (-_recipes(families[name]), name)):
        table.add_row(Text(family, style="bold cyan"))
        own = [row for row in rows if row[0].family == family]
        for entry, cells in sorted(own, key=lambda row: (_KINDS.index(row[0].kind), row[0].name)):
            summary = Text(plain_marks(entry.summary))
            # Cut here: left to itself the table would take what is missing from the names.
            summary.truncate(max(room, 24), overflow="ellipsis")
            table.add_row(*map(Text, cells), summary)
    table.caption = (
        f"{len(rows)} methods; `optkit show NAME` tells more\n"
        "bytes: optimizer state per float32 parameter, lowest to highest over the roles\n"
        "+: on top of the inner one's   *: and some for each row, column, matrix or leaf\n"
        "−: so much less than Adam's as the inner one, whose state the wrapper shrinks"
    )
    table.caption_justify = "left"
    return table


def _cells(entry: Entry) -> tuple[str, str, str, str]:
    """Returns name, kind, bytes and paper of a method."""
    paper = (entry.paper.arxiv or str(entry.paper.year)) if entry.paper else "–"
    return f"  {entry.name}", entry.kind, _range_text(entry), paper


def _recipes(entries: Iterable[Entry]) -> int:
    """Returns how many of the entries are recipes."""
    return sum(entry.kind == "recipe" for entry in entries)


def method_text(entry: Entry, *, width: int) -> Group:
    """Returns the page of ``optkit show``: facts, what it does, then one line a hyperparameter.

    Args:
      entry: the method.
      width: columns of the terminal.

    Returns:
      Two rich tables, and between them the docstring's recursion, cost and evidence.
    """
    sheet = Table(box=None, show_header=False, pad_edge=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column()
    paper = "–"
    if entry.paper is not None:
        source = f"arXiv:{entry.paper.arxiv}, " if entry.paper.arxiv else ""
        paper = f"{entry.paper.title} ({source}{entry.paper.year})"
    beside = ", beside the inner state" if entry.kind == "wrapper" else ""
    rows = [
        ("name", entry.name),
        ("path", entry.path),
        ("kind", f"{entry.kind}, family {entry.family}"),
        ("summary", entry.summary),
        ("paper", paper),
        ("chain", entry.chain),
        ("state bytes", f"per float32 parameter{beside}: {state_text(entry)}"),
        ("returns", " ".join(section(entry.factory, "Returns").split()) or "–"),
        ("tags", ", ".join(entry.tags) or "–"),
    ]
    for name, value in rows:
        sheet.add_row(name, Text(plain_marks(value)))
    prose = wrapped(body(entry.factory), min(width, _READABLE) - 2)
    told = [Text(textwrap.indent(prose, "  ")), Text()] if prose else []
    return Group(sheet, Text(), *told, _hyperparameter_table(entry))


def _hyperparameter_table(entry: Entry) -> Table:
    """Returns name, default and meaning of each hyperparameter."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("hyperparameter", no_wrap=True)
    table.add_column("default", overflow="fold", max_width=24)
    table.add_column("meaning")
    meanings = arguments(entry.factory)
    for name, parameter in entry.hyperparameters().items():
        default = "required"
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            default = "–"
        elif parameter.default is not parameter.empty:
            default = show_value(parameter.default)
        meaning = first_sentence(meanings.get(name, "–"))
        table.add_row(Text(name), Text(default), Text(meaning))
    return table


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
