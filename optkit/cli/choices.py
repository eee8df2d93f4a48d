"""Merges the command line with the configuration file; the command line goes first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.cli.errors import CommandError
from optkit.cli.hyperparameters import bind, find_recipe
from optkit.cli.measuring import EVERY, read_diagnose
from optkit.cli.parsing import MethodSpec, check_seeds, parse_assignments, parse_method
from optkit.cli.racing import RaceSettings
from optkit.cli.schedules import CONSTANT, read_schedule
from optkit.cli.settings import TrainRequest

__all__ = [
    "DEFAULT_TASK",
    "entrants",
    "hyperparameters",
    "overlay",
    "race_settings",
    "task_options",
    "train_request",
]

DEFAULT_TASK = "bytelm"
_DEFAULT_SEEDS = (0, 1)


def overlay(config: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Returns the configuration with what the command line gave in its place.

    Args:
      config: from `load_config`.
      **given: values of the command line; None means not given.

    Returns:
      The merged settings.

    Example:
      >>> overlay({"steps": 10, "seed": 1}, steps=20, seed=None)
      {'steps': 20, 'seed': 1}
    """
    return {**config, **{name: value for name, value in given.items() if value is not None}}


def task_options(settings: Mapping[str, Any], words: Sequence[str] | None) -> dict[str, Any]:
    """Returns the options of the task.

    Args:
      settings: the merged settings.
      words: ``name=value`` words of the command line.

    Returns:
      Options by name.
    """
    given = parse_assignments(words or [], flag="--task-option")
    return {**settings.get("task_options", {}), **given}


def hyperparameters(
    settings: Mapping[str, Any], method: str, words: Sequence[str] | None
) -> dict[str, Any] | None:
    """Returns the hyperparameters given for a method.

    Args:
      settings: the merged settings.
      method: its name.
      words: ``name=value`` words of the command line.

    Returns:
      Values by name, or None if none were given at all, which lets a resumed run take its own.
    """
    configured = settings["methods"].get(method)
    if not words and configured is None:
        return None
    given = parse_assignments(words or [], flag="-p")
    return {**(configured.hyperparameters if configured else {}), **given}


def train_request(
    settings: Mapping[str, Any],
    method: str,
    *,
    words: Sequence[str] | None,
    task_words: Sequence[str] | None,
    resume: bool,
) -> TrainRequest:
    """Returns what ``optkit train`` was asked for.

    Args:
      settings: the merged settings.
      method: name of the method.
      words: the words after ``-p``.
      task_words: the words after ``--task-option``.
      resume: whether to go on from the last checkpoint.

    Returns:
      The request.
    """
    task, seed = settings.get("task", DEFAULT_TASK), settings.get("seed", 0)
    numbers = ("seed", "steps", "log_every", "eval_every", "checkpoint_every", "keep")
    every, measures = read_diagnose(settings.get("diagnose"))
    return TrainRequest(
        method=method,
        out=Path(settings.get("out", f"{method}-{task}-seed{seed}")),
        hyperparameters=hyperparameters(settings, method, words),
        task=settings.get("task"),
        task_options=task_options(settings, task_words) or None,
        schedule=read_schedule(settings),
        resume=resume,
        diagnose=every,
        measures=measures,
        **{name: settings.get(name) for name in numbers},
    )


def entrants(settings: Mapping[str, Any], words: Sequence[str] | None) -> tuple[MethodSpec, ...]:
    """Returns the entrants of a race, checked, with the configuration's values filled in.

    Args:
      settings: the merged settings.
      words: ``METHOD[:name=value,...]`` words; none takes the configuration's methods.

    Returns:
      The entrants in order.

    Raises:
      CommandError: if there are none, one is entered twice, or its hyperparameters are wrong.
    """
    configured: dict[str, MethodSpec] = settings["methods"]
    specs = [parse_method(word) for word in words or []] or list(configured.values())
    if not specs:
        raise CommandError("name the methods to race, or give a --config that does")
    labels = [spec.label for spec in specs]
    filled = []
    for spec in specs:
        if labels.count(spec.label) > 1:
            raise CommandError(f"{spec.label!r} is entered twice")
        base = configured.get(spec.label) or configured.get(spec.name)
        values = {**(base.hyperparameters if base else {}), **spec.hyperparameters}
        bind(find_recipe(spec.name), values)
        filled.append(MethodSpec(spec.label, spec.name, values))
    return tuple(filled)


def race_settings(
    settings: Mapping[str, Any], specs: tuple[MethodSpec, ...], default_steps: int
) -> RaceSettings:
    """Returns the limits of a race; without any limit it takes the task's steps.

    Args:
      settings: the merged settings.
      specs: the entrants.
      default_steps: the task's steps.

    Returns:
      The settings of the race.

    Raises:
      CommandError: for seeds that are no different non-negative integers, or a schedule or
        measures that do not fit.
    """
    seeds = settings.get("seeds", [settings["seed"]] if "seed" in settings else _DEFAULT_SEEDS)
    seconds = settings.get("seconds")
    steps = settings.get("steps", None if seconds else default_steps)
    every, measures = read_diagnose(settings.get("diagnose"))
    return RaceSettings(
        entrants=specs,
        seeds=check_seeds(seeds, written=list(seeds)),
        steps=steps,
        seconds=seconds,
        eval_every=settings.get("eval_every", max(1, (steps or default_steps) // 10)),
        schedule=read_schedule(settings) or CONSTANT,
        diagnose=every or (EVERY if measures else None),
        measures=measures or (),
    )
