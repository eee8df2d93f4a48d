"""Preflights as a table, one or several side by side."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from optkit.aot.reports import ESTIMATE, Preflight

_MIB = 2**20


@dataclass(frozen=True)
class Comparison:
    """Preflights side by side; ``print`` it.

    Attributes:
      preflights: in the order of the columns.
    """

    preflights: tuple[Preflight, ...]

    def json(self) -> str:
        """Returns everything as JSON.

        Returns:
          The text of a list of objects.
        """
        return json.dumps([json.loads(each.json()) for each in self.preflights], indent=1)

    def __str__(self) -> str:
        names = [each.name or "step" for each in self.preflights]
        first = self.preflights[0]
        mesh = " x ".join(f"{size} {name}" for name, size in first.axes.items()) or "one device"
        lines = [f"on each device of {first.topology} ({mesh})", ""]
        lines += _table([("", *names), *_rows(self.preflights)])
        for each, name in zip(self.preflights, names, strict=True):
            if each.collectives:
                lines += ["", f"collectives of {name}", *_table(_exchange_rows(each))]
            lines += ["", *_words(each, name if len(names) > 1 else "")]
        lines += [
            "",
            f"Cycles are {ESTIMATE} of computation and copies, without collectives. Lower bounds",
            f"are work divided by peak numbers ({first.target.chip.source}). Nothing was run.",
        ]
        return "\n".join(lines)


def compare(*preflights: Preflight) -> Comparison:
    """Returns preflights side by side, for example those of two optimizers.

    Args:
      *preflights: at least one, of one topology.

    Returns:
      A ``Comparison``; ``print`` it.

    Raises:
      ValueError: there is none, or they are of different topologies.
    """
    if len({each.topology for each in preflights}) != 1:
        raise ValueError(
            "compare takes preflights of one topology, not "
            f"{[each.topology for each in preflights]}"
        )
    return Comparison(preflights)


def _rows(preflights: Sequence[Preflight]) -> Iterable[tuple[str, ...]]:
    """The numbers, one column each; rows that are 0 everywhere are left out."""
    yield ("compiles", *("yes" if each.compiles else "NO" for each in preflights))
    parts = ("parameters", "gradients", "state", "other", "padding", "fresh", "temporaries")
    names = {"state": "optimizer state", "fresh": "results not donated", "other": "other arguments"}
    for part in (*parts, "program"):
        sizes = [getattr(each.memory, part) for each in preflights]
        if any(sizes):
            yield (names.get(part, part), *(_mib(size) for size in sizes))
    yield ("memory in all", *(_mib(each.memory.total) for each in preflights))
    yield ("of the device's", *(_mib(each.memory.limit) for each in preflights))
    yield ("fits", *("yes" if each.fits else "NO" for each in preflights))
    for number, link in enumerate(preflights[0].target.chip.links):
        sent = [each.wire_bytes(between_slices=bool(number)) for each in preflights]
        if number == 0 or any(sent):
            yield (f"sent over {link}", *(_mib(size) for size in sent))
    products = (f"{x.flops / 1e9:.1f} GFLOP" for x in preflights)
    yield ("matrix products", *products)
    if any(each.kernels for each in preflights):
        known = (all(kernel.flops is not None for kernel in x.kernels) for x in preflights)
        cells = (
            f"{'' if all_known else 'at least '}{x.kernel_flops / 1e9:.1f} GFLOP"
            for x, all_known in zip(preflights, known, strict=True)
        )
        yield ("products in kernels", *cells)
    if any(each.accessed is not None for each in preflights):
        sizes = ["unknown" if x.accessed is None else _mib(x.accessed) for x in preflights]
        yield ("accessed by operations", *sizes)
    if any(each.cycles is not None for each in preflights):
        yield ("estimated cycles", *(_millions(each.cycles) for each in preflights))
    if any(each.kernels for each in preflights):
        yield ("cycles of kernels", *(_millions(each.kernel_cycles) for each in preflights))
    for name in dict.fromkeys(name for each in preflights for name in each.bounds):
        cells = (_micros(x.bounds.get(name, 0.0)) if x.compiles else "-" for x in preflights)
        yield (f"at least, {name}", *cells)
    yield ("largest bound", *(each.dominant if each.compiles else "-" for each in preflights))
    yield ("compiled in", *(f"{each.seconds:.1f} s" for each in preflights))


def _exchange_rows(each: Preflight) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("kind", "count", "axes", "group", "link", "results", "sent")]
    for row in each.exchanges():
        axes = ", ".join(row["axes"]) or "-"
        sizes = (_mib(row["result_bytes"]), _mib(row["wire_bytes"]))
        rows.append((row["kind"], str(row["count"]), axes, str(row["group"]), row["link"], *sizes))
    return rows


def _words(each: Preflight, name: str) -> list[str]:
    lead = f"{name}: " if name else ""
    lines = [f"{lead}does not compile: {each.error}"] if each.error else []
    lines += [f"{lead}{line}" for line in each.advice]
    return lines or [f"{lead}nothing to change was found"]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of columns: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _mib(size: float) -> str:
    return "<0.1 MiB" if 0 < size < _MIB / 20 else f"{size / _MIB:,.1f} MiB"


def _millions(cycles: int | None) -> str:
    return "unknown" if cycles is None else f"{cycles / 1e6:.2f} M"


def _micros(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e6:,.0f} us"


__all__ = ["Comparison", "compare"]
