"""Between the values that text can express and the types that a method is annotated with."""

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from optkit.cli.errors import CommandError

__all__ = ["convert", "expectation", "plain", "show_value"]

_ANYTHING = (Any, object, inspect.Parameter.empty)
_ARRAYS = (jax.Array, np.ndarray, np.generic, np.number)
_NO_MATCH = object()


def show_value(value: Any) -> str:
    """Returns a value as it would be written after ``-p name=``.

    Args:
      value: a default or a given value.

    Returns:
      Short text.
    """
    shown = plain(value)
    return shown if isinstance(shown, str) and not isinstance(value, str) else repr(value)


def plain(value: Any) -> Any:
    """Returns a value as JSON would give it back; other objects as text without an address.

    Args:
      value: anything.

    Returns:
      None, a bool, a number, text, a list or a dict of these.

    Example:
      >>> plain((1, 2.5, print))
      [1, 2.5, 'builtins.print']
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def _alternatives(annotation: Any) -> list[Any]:
    """Returns the members of a union, flattened; a single type gives itself."""
    annotation = getattr(annotation, "__value__", annotation)  # a `type X = ...` alias
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        members = typing.get_args(annotation)
        return [kind for member in members for kind in _alternatives(member)]
    return [annotation]


def convert(method: str, name: str, value: Any, annotation: Any) -> Any:
    """Converts a value to the first alternative of an annotation that takes it.

    Args:
      method: whose hyperparameter it is, for the message.
      name: the hyperparameter.
      value: a parsed value.
      annotation: its annotation.

    Returns:
      The value to pass on.

    Raises:
      CommandError: naming what is expected.

    Example:
      >>> convert("muon", "learning_rate", 1, float | None)
      1.0
    """
    kinds = _alternatives(annotation)
    # float comes last, so that an integer stays one where integers are allowed.
    for kind in sorted(kinds, key=lambda kind: kind is float):
        converted = _match(value, kind)
        if converted is not _NO_MATCH:
            return converted
    raise CommandError(
        f"{method}: {name} expects {expectation(annotation)}, "
        f"got {value!r} ({type(value).__name__})"
    )


def _match(value: Any, kind: Any) -> Any:
    """Returns `value` converted to `kind`, or the mark for no match."""
    origin = typing.get_origin(kind) or kind
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind in _ANYTHING or isinstance(kind, str | typing.ForwardRef | typing.TypeVar):
        return value
    if origin is typing.Literal:
        return value if value in typing.get_args(kind) else _NO_MATCH
    if kind is None or kind is type(None):
        return None if value is None else _NO_MATCH
    if origin in (bool, str):
        return value if isinstance(value, origin) else _NO_MATCH
    if origin is int:
        return value if is_number and isinstance(value, int) else _NO_MATCH
    if origin is float or origin in _ARRAYS:
        return float(value) if is_number else _NO_MATCH
    if origin is np.dtype:
        return _dtype(value)
    return _match_container(value, origin)


def _match_container(value: Any, origin: Any) -> Any:
    """As `_match` for lists, tuples and mappings."""
    if origin is collections.abc.Callable:
        return value if callable(value) else _NO_MATCH  # given in Python, never by text
    if not isinstance(origin, type):
        return _NO_MATCH
    if isinstance(value, list | tuple) and issubclass(tuple, origin):
        return _tupled(value)
    if isinstance(value, list | tuple) and issubclass(list, origin):
        return list(value)
    if isinstance(value, Mapping) and issubclass(dict, origin):
        return dict(value)
    return _NO_MATCH


def _tupled(value: Any) -> Any:
    """Turns nested lists into tuples, which are hashable and so usable as static values."""
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value


def _dtype(value: Any) -> Any:
    """Returns the dtype named by text, or the mark for no match."""
    try:
        return np.dtype(value) if isinstance(value, str) else _NO_MATCH
    except TypeError:
        return _NO_MATCH


def expectation(annotation: Any) -> str:
    """Says in words what values an annotation takes.

    Args:
      annotation: the annotation of a hyperparameter.

    Returns:
      Text such as ``a number or None``.

    Example:
      >>> expectation(float | None), expectation(bool)
      ('a number or None', 'true or false')
    """
    words: list[str] = []
    for kind in _alternatives(annotation):
        word = _word(kind)
        if word and word not in words:
            words.append(word)
    return " or ".join(words) if words else "a Python object, which a command line cannot give"


def _word(kind: Any) -> str:
    """Returns what one alternative takes in words; empty if text cannot express it."""
    origin: Any = typing.get_origin(kind) or kind
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "text",
        type(None): "None",
        None: "None",
        np.dtype: "a dtype name",
    }
    if kind in _ANYTHING:
        return "any value"
    if origin is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    if origin in names:
        return names[origin]
    if origin in _ARRAYS:
        return "a number"
    if isinstance(origin, type) and origin is not collections.abc.Callable:
        if issubclass(tuple, origin) or issubclass(list, origin):
            return "a list"
        if issubclass(dict, origin):
            return "a table"
    return ""
