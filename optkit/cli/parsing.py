"""From the words of a command line or a configuration file to values and names."""

import ast
import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.cli.errors import CommandError, suggestion

__all__ = [
    "MethodSpec",
    "check_seeds",
    "load_config",
    "parse_assignments",
    "parse_method",
    "parse_seeds",
    "parse_value",
]

_WORDS = {"true": True, "false": False, "none": None, "null": None}
_COUNT = (int, "an integer above 0")
_CONFIG_KEYS: dict[str, tuple[Any, str]] = {
    "task": (str, "text"),
    "task_options": (Mapping, "a table"),
    "methods": ((Mapping, list), "a table or a list"),
    "steps": _COUNT,
    "schedule": (str, "text"),
    "warmup": (int, "an integer of at least 0"),
    "final": ((int, float), "a number from 0 to 1"),
    "decay": ((int, float), "a number above 0"),
    "cycles": _COUNT,
    "seconds": ((int, float), "a number above 0"),
    "seed": (int, "an integer of at least 0"),
    "seeds": (list, "a list"),
    "population": _COUNT,
    "generations": _COUNT,
    "optimizer": (str, "text"),
    "learning_rate": ((int, float), "a number above 0"),
    "eval_every": _COUNT,
    "log_every": _COUNT,
    "checkpoint_every": _COUNT,
    "keep": _COUNT,
    "diagnose": ((int, str), "an integer above 0, or text such as '10,spectra,attention'"),
    "out": (str, "text"),
}


_FROM_ZERO = ("seed", "warmup", "final")


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """One entrant: a method name with the hyperparameters that were given for it."""

    label: str
    name: str
    hyperparameters: Mapping[str, Any]


def parse_value(text: str) -> Any:
    """Reads a value written as JSON or as a Python literal; anything else is text.

    Args:
      text: for example ``0.02``, ``true``, ``None``, ``"ema"``, ``ema``, ``[0.9, 0.99]``.

    Returns:
      The value.

    Example:
      >>> parse_value("1e-3"), parse_value("true"), parse_value("ema"), parse_value("(1, 2)")
      (0.001, True, 'ema', (1, 2))
    """
    stripped = text.strip()
    if stripped.lower() in _WORDS:
        return _WORDS[stripped.lower()]
    for read in (json.loads, ast.literal_eval):
        try:
            return read(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return stripped


def parse_assignments(items: Iterable[str], *, flag: str) -> dict[str, Any]:
    """Reads ``name=value`` words.

    Args:
      items: the words.
      flag: the option they came with, for the message.

    Returns:
      Values by name, in order.

    Raises:
      CommandError: for a word without ``=``, an empty name or a name given twice.

    Example:
      >>> parse_assignments(["b1=0.9", "nesterov=true"], flag="-p")
      {'b1': 0.9, 'nesterov': True}
    """
    values: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise CommandError(f"{flag} takes name=value, got {item!r}")
        if name in values:
            raise CommandError(f"{flag}: {name!r} is given twice")
        values[name] = parse_value(text)
    return values


def _split_outside_brackets(text: str) -> list[str]:
    """Splits at the commas that are in no bracket and no quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for index, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:index])
            start = index + 1
    return [part for part in [*parts, text[start:]] if part.strip()]


def parse_method(text: str) -> MethodSpec:
    """Reads ``METHOD`` or ``METHOD:name=value,name=value``.

    Args:
      text: the word.

    Returns:
      The entrant, labelled with the word itself.

    Raises:
      CommandError: for an assignment that cannot be read.

    Example:
      >>> parse_method("muon:learning_rate=0.02,betas=[0.9,0.99]").hyperparameters
      {'learning_rate': 0.02, 'betas': [0.9, 0.99]}
    """
    name, _, rest = text.partition(":")
    assignments = parse_assignments(_split_outside_brackets(rest), flag=text)
    return MethodSpec(text.strip().rstrip(":"), name.strip(), assignments)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Reads seeds separated by commas.

    Args:
      text: for example ``0,1,2``.

    Returns:
      The seeds.

    Raises:
      CommandError: for anything but different non-negative integers.

    Example:
      >>> parse_seeds("0, 3")
      (0, 3)
    """
    try:
        seeds = [int(word) for word in text.split(",") if word.strip()]
    except ValueError:
        seeds = []
    return check_seeds(seeds, written=text)


def check_seeds(seeds: Sequence[Any], *, written: object) -> tuple[int, ...]:
    """Returns the seeds if they are different non-negative integers.

    Args:
      seeds: the seeds.
      written: what the user wrote, for the message.

    Returns:
      The seeds.

    Raises:
      CommandError: if they are anything else.
    """
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not seeds or not whole or min(seeds) < 0 or len(set(seeds)) != len(seeds):
        raise CommandError(
            f"seeds are different non-negative integers like 0,1,2; got {str(written)!r}"
        )
    return tuple(seeds)


def load_config(path: Path | None) -> dict[str, Any]:
    """Reads a TOML or JSON configuration file and check its keys.

    Keys: ``task``, ``steps``, ``seconds``, ``seed``, ``seeds``, ``schedule``, ``warmup``,
    ``final``, ``decay``, ``cycles``, ``eval_every``, ``log_every``, ``checkpoint_every``, ``keep``,
    ``diagnose``, ``out``, for ``optkit evolve`` ``population``, ``generations``, ``optimizer`` and
    ``learning_rate``, the table ``task_options``, and ``methods``: either a table of tables
    (``[methods.muon]`` with hyperparameters) or a list of ``METHOD:name=value,...`` words.

    Args:
      path: the file, by its suffix ``.toml`` or ``.json``; ``None`` gives an empty configuration.

    Returns:
      The configuration with ``methods`` as ``{label: MethodSpec}``.

    Raises:
      CommandError: for a file that cannot be read, an unknown key or a value of the wrong kind.
    """
    if path is None:
        return {"methods": {}}
    readers = {".toml": tomllib.loads, ".json": json.loads}
    if path.suffix not in readers:
        raise CommandError(f"{path}: a configuration is a .toml or a .json file")
    try:
        config = readers[path.suffix](path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(config, dict):
        raise CommandError(f"{path}: a configuration is a table of keys and values")
    for key, value in config.items():
        _check_config_item(path, key, value)
    return {**config, "methods": _config_methods(path, config.get("methods", {}))}


def _check_config_item(path: Path, key: str, value: object) -> None:
    """Raises if a configuration has an unknown key or a value of the wrong kind."""
    if key not in _CONFIG_KEYS:
        known = ", ".join(_CONFIG_KEYS)
        close = suggestion(key, _CONFIG_KEYS)
        raise CommandError(f"{path}: unknown key {key!r}{close}; known: {known}")
    kind, expected = _CONFIG_KEYS[key]
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if fits and isinstance(value, int | float):
        fits = value >= 0 if key in _FROM_ZERO else value > 0
    if not fits:
        raise CommandError(f"{path}: {key} must be {expected}, got {value!r}")


def _config_methods(path: Path, methods: Mapping[str, Any] | list[Any]) -> dict[str, MethodSpec]:
    """Returns the entrants of a configuration by label."""
    specs = {}
    items = methods.items() if isinstance(methods, Mapping) else [(word, {}) for word in methods]
    for label, table in items:
        if not isinstance(label, str) or not isinstance(table, Mapping):
            raise CommandError(
                f"{path}: methods holds tables of hyperparameters or METHOD:name=value words, "
                f"got {label!r}: {table!r}"
            )
        spec = parse_method(label)
        merged = {**spec.hyperparameters, **table}
        specs[spec.label] = dataclasses.replace(spec, hyperparameters=merged)
    return specs
