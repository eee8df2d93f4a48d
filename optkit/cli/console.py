"""Where the commands print."""

import os
import sys

from rich.console import Console
from rich.text import Text

__all__ = ["make_console", "notice", "say"]


def make_console() -> Console:
    """Returns a console on standard output, wide where no terminal says how wide it is."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def say(text: str) -> None:
    """Prints a line that is never wrapped, so that it can be searched and copied.

    Args:
      text: the line.
    """
    make_console().print(Text(text), soft_wrap=True)


def notice(text: str) -> None:
    """Prints a line on standard error, for what is no result.

    Args:
      text: the line.
    """
    print(text, file=sys.stderr)
