"""Schedules as JSON files."""

import json
from pathlib import Path

from optkit.schedules.phases import Schedule, from_dict


def save(schedule: Schedule, path: str | Path) -> Path:
    """Writes a schedule as a JSON file.

    Args:
      schedule: made by a function of ``optkit.schedules``.
      path: the file; its folder is made if there is none.

    Returns:
      The file's path.

    Raises:
      TypeError: some other function, which no file can hold.

    Example:
      >>> import pathlib, tempfile, optkit
      >>> rate = optkit.schedules.wsd(0.02, 1000)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...   file = optkit.schedules.save(rate, pathlib.Path(folder) / "rate.json")
      ...   optkit.schedules.load(file) == rate
      True
    """
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"{schedule!r} is no optkit.schedules.Schedule: only those can be written to a file"
        )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(schedule.to_dict(), indent=1) + "\n", encoding="utf-8")
    return path


def load(path: str | Path) -> Schedule:
    """Reads a schedule that ``save`` or ``optkit schedule refine`` wrote.

    Args:
      path: the file.

    Returns:
      The schedule.

    Raises:
      ValueError: the file holds no schedule.

    Example:
      >>> import pathlib, tempfile, optkit
      >>> with tempfile.TemporaryDirectory() as folder:
      ...   file = optkit.schedules.save(optkit.schedules.constant(0.5), f"{folder}/rate.json")
      ...   float(optkit.schedules.load(file)(7))
      0.5
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"{path} is no schedule file, such as optkit.schedules.save writes: {error}"
        ) from error
    try:
        return from_dict(data)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
