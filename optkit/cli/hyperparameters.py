"""Checks the hyperparameters of a method against the signature of its factory."""

import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Any

import optax

import optkit.catalogue
from optkit._compositions import COMPOSITIONS
from optkit.catalogue import Entry
from optkit.cli.errors import CommandError, message_of, suggestion
from optkit.cli.schedules import CONSTANT, RateSchedule
from optkit.cli.values import convert, plain

__all__ = [
    "bind",
    "build",
    "composition",
    "find_entry",
    "find_recipe",
    "find_strategy",
    "rates_of",
    "resolved",
]


def composition(name: str) -> str:
    """Says what a name that is no part of its own is composed of.

    Args:
      name: any name.

    Returns:
      A sentence; empty for all other names.

    Example:
      >>> composition("dp_sgd")[:50]
      'dp_sgd is not one part: optkit.privacy.private_gra'
    """
    return f"{name} is not one part: {COMPOSITIONS[name]}" if name in COMPOSITIONS else ""


def find_entry(name: str) -> Entry:
    """Returns a catalogue entry, turning an unknown name into a one-line error.

    Args:
      name: a catalogued name.

    Returns:
      The entry.

    Raises:
      CommandError: for an unknown name, with close ones or what it is composed of.
    """
    try:
        return optkit.catalogue.get(name)
    except KeyError as error:
        composed = composition(name)
        if composed:
            raise CommandError(composed) from error
        close = suggestion(name, [entry.name for entry in optkit.catalogue.entries()])
        raise CommandError(f"unknown method {name!r}{close}; `optkit list` shows all") from error


def find_recipe(name: str) -> Entry:
    """Returns the entry of a complete optimizer; parts and wrappers are refused.

    Args:
      name: a catalogued name.

    Returns:
      The entry.

    Raises:
      CommandError: for an unknown name or something that is no complete optimizer.
    """
    entry = find_entry(name)
    if entry.kind != "recipe":
        runs = "; `optkit evolve` runs it" if entry.kind == "strategy" else ""
        raise CommandError(
            f"{name} is a {entry.kind}, not a complete optimizer; "
            f"choose a recipe (`optkit list --kind recipe`){runs}"
        )
    return entry


def find_strategy(name: str) -> Entry:
    """Returns the entry of a population method that a fitness is enough for.

    Args:
      name: a catalogued name.

    Returns:
      The entry.

    Raises:
      CommandError: for an unknown name, something that is no population method, or one for parts of
        unrolled problems.
    """
    entry = find_entry(name)
    if entry.kind != "strategy":
        runs = "; `optkit train` runs it" if entry.kind == "recipe" else ""
        raise CommandError(
            f"{name} is a {entry.kind}, not a population method; "
            f"choose a strategy (`optkit list --kind strategy`){runs}"
        )
    if "unrolled" in entry.tags:
        raise CommandError(
            f"{name} is for problems that are unrolled in parts, which no task here is; "
            "openai_es has the same noise for whole ones"
        )
    return entry


def bind(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """Checks hyperparameters against a method and convert them to the annotated types.

    Args:
      entry: the method.
      given: values by name, as parsed.

    Returns:
      The values to call ``entry.factory`` with.

    Raises:
      CommandError: for an unknown name, a value of the wrong type or a missing one.
    """
    allowed = entry.hyperparameters()
    keywords = inspect.Parameter.VAR_KEYWORD
    open_ended = (keywords, inspect.Parameter.VAR_POSITIONAL)
    named = {name: par for name, par in allowed.items() if par.kind not in open_ended}
    hints = _hints(entry.factory)
    bound = {}
    for name, value in given.items():
        if name in named:
            annotation = hints.get(name, named[name].annotation)
            bound[name] = convert(entry.name, name, value, annotation)
        elif any(parameter.kind is keywords for parameter in allowed.values()):
            bound[name] = value
        else:
            raise CommandError(
                f"{entry.name} has no hyperparameter {name!r}{suggestion(name, named)}; "
                f"allowed: {', '.join(named)}"
            )
    for name, parameter in named.items():
        if parameter.default is parameter.empty and name not in bound:
            raise CommandError(
                f"{entry.name} needs a value for {name}: "
                f"pass -p {name}=VALUE (in a race: {entry.name}:{name}=VALUE)"
            )
    return bound


def build(
    entry: Entry,
    given: Mapping[str, Any],
    schedule: RateSchedule = CONSTANT,
    steps: int | None = None,
) -> optax.GradientTransformation:
    """Builds the optimizer of a method.

    Args:
      entry: the method.
      given: hyperparameters by name, as parsed.
      schedule: the course of every learning rate of the method (also of ``adam_learning_rate`` and
        its like, so that all leaves follow it).
      steps: steps of the run.

    Returns:
      The transformation.

    Raises:
      CommandError: as `bind`, for values that the factory refuses, and for a schedule that does
        not fit the run.
    """
    bound = bind(entry, given)
    schedule.check(steps)
    for name, rate in rates_of(entry, bound).items():
        bound[name] = schedule.over(rate, steps)
    try:
        return entry.factory(**bound)
    except (TypeError, ValueError, KeyError) as error:
        raise CommandError(f"{entry.name}: {message_of(error)}") from error


def rates_of(entry: Entry, bound: Mapping[str, Any]) -> dict[str, float]:
    """Returns the learning rates in force by name; one that is None follows another and stays.

    Args:
      entry: the method.
      bound: hyperparameters, as bound.

    Returns:
      Rates by name; schedules are left out.
    """
    values = {name: bound.get(name, par.default) for name, par in entry.hyperparameters().items()}
    return {
        name: value
        for name, value in values.items()
        if (name == "learning_rate" or name.endswith("_learning_rate"))
        and isinstance(value, int | float)
    }


def resolved(entry: Entry, given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every hyperparameter with the value that is in force, as plain JSON values.

    Args:
      entry: the method.
      given: hyperparameters by name, as parsed.

    Returns:
      Defaults and given values; anything that is no plain value appears as stable text.
    """
    parameters = entry.hyperparameters().items()
    defaults = {name: par.default for name, par in parameters if par.default is not par.empty}
    return {name: plain(value) for name, value in {**defaults, **bind(entry, given)}.items()}


def _hints(factory: Callable[..., object]) -> dict[str, Any]:
    """Returns the evaluated annotations of a factory, or none if they cannot be evaluated."""
    try:
        return typing.get_type_hints(inspect.unwrap(factory))
    except (NameError, TypeError, AttributeError):
        return {}
