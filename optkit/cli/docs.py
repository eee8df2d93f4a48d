"""What the docstrings of methods say, in pieces for a terminal."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

__all__ = ["arguments", "body", "first_sentence", "plain_marks", "section", "wrapped"]

_ITEM = re.compile(r"(\d+\.|\*) ")


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


def body(function: Callable[..., Any]) -> str:
    """Returns what a docstring says between its summary and its first section.

    Args:
      function: whose docstring.

    Returns:
      Blocks of lines with a blank line between two; empty if there is nothing.

    Example:
      >>> body(body)
      ''
    """
    text = inspect.getdoc(function) or ""
    before = re.split(r"^(?:Args|Returns|Raises|Example|Reference):$", text, flags=re.MULTILINE)[0]
    return before.partition("\n\n")[2].strip("\n")


def wrapped(text: str, width: int) -> str:
    r"""Fills paragraphs and items of lists to a width; code and tables stay as they are.

    Args:
      text: blocks as of ``body``.
      width: columns.

    Returns:
      The text with single quotes of code.

    Example:
      >>> print(wrapped("1. one\n   and more;\n2. two::\n\n  code  here", 12))
      1. one and
         more;
      2. two:
      <BLANKLINE>
        code  here
    """
    return "\n\n".join(_block(block, width) for block in re.split(r"\n{2,}", text))


def _block(block: str, width: int) -> str:
    """Fills one block: items, if its first line begins one, or else a paragraph."""
    if block.startswith(" "):
        return block
    if block.startswith("=="):
        # Columns stay in line: what a mark loses comes back as space.
        return re.sub(r"``(.+?)``", r"`\1`  ", block)
    pieces = re.split(r"\n(?=(?:\d+\.|\*) )", block) if _ITEM.match(block) else [block]
    filled = []
    for piece in pieces:
        mark = _ITEM.match(piece) if _ITEM.match(block) else None
        text = plain_marks(" ".join(piece.split()))
        if text.endswith("::"):
            text = text[:-1]
        indent = " " * len(mark.group()) if mark else ""
        filled.append(
            textwrap.fill(
                text,
                width,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(filled)


def plain_marks(text: str) -> str:
    """Returns a docstring's text with single quotes of code, as terminals show them.

    Args:
      text: with double backquotes around code.

    Returns:
      The text.

    Example:
      >>> plain_marks("takes ``x``")
      'takes `x`'
    """
    return text.replace("``", "`")


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
    return {name: plain_marks(text).strip() for name, text in meanings.items()}


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
