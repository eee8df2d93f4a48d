"""The training log: one JSON object a line, which survives being killed at any moment."""

import json
import math
import os
import pathlib
from types import TracebackType
from typing import Any, Self

__all__ = ["TrainingLog", "finite", "read_log", "write_text"]


def finite(value: Any) -> Any:
    """Replaces numbers that JSON does not have (nan, inf) by None, at any depth.

    Args:
      value: a JSON value.

    Returns:
      The same value, safe for strict JSON.

    Example:
      >>> finite({"loss": float("nan"), "step": 3})
      {'loss': None, 'step': 3}
    """
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that it is there whole or as it was before.

    Args:
      path: the file.
      text: its new content.
    """
    beside = path.with_name(path.name + ".new")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def read_log(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a log; a last line that was cut off while being written is left out.

    Args:
      path: the file; one that does not exist reads as empty.

    Returns:
      The rows in order.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # Only what ends in a newline was written whole.
    return [json.loads(line) for line in lines[:-1]]


class TrainingLog:
    """A log opened for appending after the last step that a checkpoint vouches for.

    Rows of later steps are dropped when it opens: the resumed run writes them again, so the log has
    neither gaps nor duplicates.

    Args:
      path: the file.
      after: last step whose row stays; ``-1`` empties the log.
    """

    def __init__(self, path: pathlib.Path, *, after: int) -> None:
        self.rows = [row for row in read_log(path) if row["step"] <= after]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, row: dict[str, Any]) -> None:
        """Writes one row.

        Args:
          row: JSON values, with ``step``.
        """
        row = finite(row)
        self.rows.append(row)
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Returns when all rows are on disk; a checkpoint may be saved only after that."""
        os.fsync(self._file.fileno())
