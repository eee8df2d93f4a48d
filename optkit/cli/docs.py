"""What the docstrings of methods say, in pieces for a terminal."""

import inspect
import re
from collections.abc import Callable
from typing import Any

__all__ = ["arguments", "first_sentence", "section"]


def section(function: Callable[..., Any], name: str) -> str:
    """Returns a section of a docstring without its heading.

    Args:
      function: whose docstring.
      name: heading without its colon, such as ``Args``.

    Returns:
      The lines, indented as one block; empty if there is no such section.

    Example:
      >>> section(section, "Returns")
      'The lines, indented as one block; empty if there is no such section.'
    """
    text = inspect.getdoc(function) or ""
    found = re.search(rf"^{name}:\n((?:  .*\n|\n)+)", text + "\n", re.MULTILINE)
    return inspect.cleandoc(found.group(1)) if found else ""


def arguments(function: Callable[..., Any]) -> dict[str, str]:
    """Returns what a docstring says of each argument.

    Args:
      function: a function with an ``Args:`` section.

    Returns:
      Meanings by name, each in one line.

    Example:
      >>> arguments(arguments)
      {'function': 'a function with an `Args:` section.'}
    """
    meanings: dict[str, str] = {}
    name = ""
    for line in section(function, "Args").splitlines():
        start = re.match(r"\**(\w+): ?(.*)", line)
        if start:
            name, text = start.groups()
            meanings[name] = text
        elif name:
            meanings[name] = f"{meanings[name]} {line.strip()}"
    return {name: text.replace("``", "`").strip() for name, text in meanings.items()}


def first_sentence(text: str) -> str:
    """Returns a text up to the first full stop that ends a sentence.

    Args:
      text: one or more sentences.

    Returns:
      The first one without its full stop.

    Example:
      >>> first_sentence("Rate of decay (e.g. 0.9). Read twice.")
      'Rate of decay (e.g. 0.9)'
    """
    return re.split(r"\.(?:\s+(?=[A-Z])|$)", text, maxsplit=1)[0]
