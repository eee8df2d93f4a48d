"""Built-in learning tasks: data that needs no download, small models, held-out metrics.

Example:
  >>> from optkit import tasks
  >>> tasks.names()
  ['bytelm', 'digits', 'digits_linen', 'regression']
  >>> task = tasks.get("regression", condition=10.0)
  >>> task.metric
  'loss'
"""

import importlib
from typing import Any

from optkit.tasks.base import (
    Batch,
    Metrics,
    Params,
    Task,
    TaskOptionError,
    UnknownTask,
    check_options,
    suggestion,
)
from optkit.tasks.training import Record, run, start, train_step

__all__ = [
    "Batch",
    "Metrics",
    "Params",
    "Record",
    "Task",
    "TaskOptionError",
    "UnknownTask",
    "get",
    "names",
    "run",
    "start",
    "train_step",
]

# Modules with a `build`, imported when asked for: Flax takes a second to import.
_NAMES = ("bytelm", "digits", "digits_linen", "regression")
# Their losses are piecewise constant in most parameters: for methods that need no gradients.
_HARD = ("hard_digits", "maxsat")


def names(*, hard: bool = False) -> list[str]:
    """Lists the tasks.

    Args:
      hard: those that gradients can't learn, instead of those that they can.

    Returns:
      Names that `get` knows, sorted.
    """
    return list(_HARD if hard else _NAMES)


def get(name: str, **options: Any) -> Task:
    """Builds the task of that name.

    Args:
      name: one of `names()` or `names(hard=True)`.
      **options: the keyword arguments of the task's `build`, such as `width=256` for "bytelm".

    Returns:
      The task, its data loaded.

    Raises:
      UnknownTask: if there is no such task.
      TaskOptionError: if the task has no such option, or the option can't take the value.

    Example:
      >>> get("regression", inputs=8, outputs=4).parameters
      48
    """
    known = (*_NAMES, *_HARD)
    if name not in known:
        raise UnknownTask(f"no task {name!r}.{suggestion(name, known)} Tasks: {', '.join(known)}")
    build = importlib.import_module(f"optkit.tasks.{name}").build
    check_options(name, build, options)
    return build(**options)
