"""Counts the instructions of Pallas kernels: the TPU's compiler gives no estimate for them."""

import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_FLAGS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true"
_FILE = re.compile(r"\d+-(?P<name>.+)-\d+-schedule-analysis_final_bundles\.txt")
_LISTING = re.compile(r"\d+-(?P<name>.+)-\d+-final_bundles\.txt")
_TOTAL = re.compile(r"total scheduled bundles:\s+(\d+)")
_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +([A-Z]{2})?: ([> ]*)\{(.*)$", re.MULTILINE)
# Bundles behind a branch that are done before it is taken.
_DELAY = 4
_folder: tempfile.TemporaryDirectory[str] | None = None


class Span(NamedTuple):
    """A loop of a schedule.

    Attributes:
      bundles: of one trip, without those of the loops in it.
      inner: the loops in it, in order.
    """

    bundles: int
    inner: tuple["Span", ...] = ()


class Schedule(NamedTuple):
    """Bundles of instructions of a kernel.

    Attributes:
      bundles: all of them, loops counted once.
      loops: its outermost loops, in order.
    """

    bundles: int
    loops: tuple[Span, ...] = ()


def write_schedules() -> Path:
    """Has the TPU's compiler write the schedules of what it compiles from now on to a folder.

    It is told when it is first used in a process: call this before.
    It writes each stage of all that it compiles, so that large programs take several times longer.
    The folder is removed when the process ends.

    Returns:
      The folder.
    """
    global _folder
    if _folder is None:
        _folder = tempfile.TemporaryDirectory(prefix="optkit-schedules-")
    return Path(_folder.name)


def compiler_flags() -> str:
    """Returns what the TPU's compiler has to find in its environment when it is loaded.

    Returns:
      Flags, those that are there already among them; empty if there are none.
    """
    before = os.environ.get("LIBTPU_INIT_ARGS", "")
    own = _FLAGS.format(_folder.name) if _folder is not None else ""
    return f"{before} {own}".strip()


def forget_schedules() -> None:
    """Removes what was written so far."""
    if _folder is not None:
        for path in Path(_folder.name).iterdir():
            path.unlink()


def scheduled_bundles() -> dict[str, int]:
    """Returns the bundles of instructions in what was compiled since ``forget_schedules``.

    A bundle takes a cycle if nothing waits. Loops inside a kernel count once, and so does its grid:
    for the cycles of a kernel multiply by the points of its grid.

    Returns:
      Bundles by the name of the HLO instruction, the most if a name comes twice; empty without
      ``write_schedules``.
    """
    out: dict[str, int] = {}
    if _folder is None:
        return out
    for path in Path(_folder.name).iterdir():
        file = _FILE.fullmatch(path.name)
        if file and (total := _TOTAL.search(path.read_text())):
            out[file["name"]] = max(int(total[1]), out.get(file["name"], 0))
    return out


def schedules(names: Iterable[str]) -> dict[str, Schedule]:
    """Returns schedules that were written since ``forget_schedules``, with the loops inside.

    Args:
      names: of the HLO instructions.

    Returns:
      Schedules by name, the longest if a name comes twice; empty without ``write_schedules``.
    """
    out: dict[str, Schedule] = {}
    wanted = set(names)
    if _folder is None:
        return out
    for path in Path(_folder.name).iterdir():
        file = _LISTING.fullmatch(path.name)
        if file and file["name"] in wanted:
            found = read_schedule(path.read_text())
            if found.bundles > out.get(file["name"], Schedule(0)).bundles:
                out[file["name"]] = found
    return out


def read_schedule(text: str) -> Schedule:
    """Returns a schedule that the compiler wrote.

    Each line is a bundle; the arrowheads before it are the loops around it. A loop begins at a line
    marked LB, or LH if it has a header, and ends behind the branch back to it; what the scheduler
    moved there from outside the loop bears fewer arrowheads.

    Args:
      text: of a file of final bundles.

    Returns:
      The bundles, with the loops.
    """
    lines = _BUNDLE.findall(text)
    depths = [arrows.count(">") for _, arrows, _ in lines]
    branches = {i for i, (_, _, rest) in enumerate(lines) if "sbr.rel" in rest}
    starts = [i for i, line in enumerate(lines) if depths[i] and line[0] in ("LB", "LH")]
    ends = {}
    for start in reversed(starts):  # inner ones first: each has a branch of its own
        after = (i for i in starts if i > start and depths[i] <= depths[start])
        stop = next(after, len(lines))
        last = max(i for i in range(start, stop) if depths[i] >= depths[start])
        near = range(max(last - _DELAY, start), min(last + 2, stop))
        back = next((i for i in near if i in branches), None)
        branches.discard(back)
        ends[start] = min(last if back is None else max(last, back + _DELAY), stop - 1) + 1
    return Schedule(len(lines), _spans(starts, ends))


def _spans(starts: list[int], ends: dict[int, int]) -> tuple[Span, ...]:
    """Loops from where they start and end, those inside of others below them."""
    out = []
    while starts:
        first, end = starts[0], ends[starts[0]]
        inside = [i for i in starts[1:] if i < end]
        inner = _spans(inside, ends)
        tops = sum(map(size, inner))
        out.append(Span(end - first - tops, inner))
        starts = starts[1 + len(inside) :]
    return tuple(out)


def size(span: Span) -> int:
    """Returns the bundles of a loop and of those in it, each counted once.

    Args:
      span: the loop.

    Returns:
      Their number.
    """
    return span.bundles + sum(map(size, span.inner))


__all__ = [
    "Schedule",
    "Span",
    "compiler_flags",
    "forget_schedules",
    "read_schedule",
    "scheduled_bundles",
    "schedules",
    "size",
    "write_schedules",
]
