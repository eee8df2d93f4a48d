"""Counts the instructions of Pallas kernels: the TPU's compiler gives no estimate for them."""

import os
import re
import tempfile
from pathlib import Path

_FLAGS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true"
_FILE = re.compile(r"\d+-(?P<name>.+)-\d+-schedule-analysis_final_bundles\.txt")
_TOTAL = re.compile(r"total scheduled bundles:\s+(\d+)")
_folder: tempfile.TemporaryDirectory[str] | None = None


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


__all__ = ["compiler_flags", "forget_schedules", "scheduled_bundles", "write_schedules"]
