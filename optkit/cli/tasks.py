"""From the name and the options of a task to the task."""

import types
from collections.abc import Mapping
from typing import Any

import optkit.tasks
import optkit.tasks.population
from optkit.cli.errors import CommandError, message_of, suggestion
from optkit.tasks import Task
from optkit.tasks.population import PopulationTask

__all__ = ["make_population_task", "make_task"]


def make_task(name: str, options: Mapping[str, Any]) -> Task:
    """Builds a task, turning its complaints into one-line errors.

    Args:
      name: one of ``optkit.tasks.names()``.
      options: its options.

    Returns:
      The task.

    Raises:
      CommandError: for an unknown task or a refused option.
    """
    task: Task = _made(optkit.tasks, name, options)
    return task


def make_population_task(name: str, options: Mapping[str, Any]) -> PopulationTask:
    """Builds a task for populations, turning its complaints into one-line errors.

    Args:
      name: one of ``optkit.tasks.population.names()``.
      options: its options.

    Returns:
      The task.

    Raises:
      CommandError: for an unknown task or a refused option.
    """
    task: PopulationTask = _made(optkit.tasks.population, name, options)
    return task


def _made(tasks: types.ModuleType, name: str, options: Mapping[str, Any]) -> Any:
    """Builds a task of a module."""
    known = tasks.names()
    if name not in known:
        raise CommandError(
            f"unknown task {name!r}{suggestion(name, known)}; tasks: {', '.join(sorted(known))}"
        )
    try:
        return tasks.get(name, **options)
    except ImportError as error:
        raise CommandError(message_of(error), exit_code=1) from error
    except (TypeError, ValueError, KeyError, OSError) as error:
        raise CommandError(f"task {name}: {message_of(error)}") from error
