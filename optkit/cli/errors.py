"""What the command line says when it is used wrongly."""

import difflib
import importlib.util
from collections.abc import Iterable, Sequence

__all__ = ["STOPPED", "CommandError", "message_of", "require_extra", "suggestion"]

STOPPED = 130  # exit code of a run that Ctrl-C ended


class CommandError(Exception):
    """A mistake that the user can mend: printed as one line, without a traceback.

    Args:
      message: what is wrong and the remedy.
      exit_code: the exit code of the process (2 = wrong use, 1 = a run that failed).
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns ``" (did you mean 'x'?)"`` for the known names close to `name`, or ``""``.

    Args:
      name: what the user wrote.
      known: the names that would have been right.

    Returns:
      Text to append to an error message.

    Example:
      >>> suggestion("moun", ["muon", "lion"])
      " (did you mean 'muon'?)"
    """
    by_lower = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=3, cutoff=0.6)
    if not close:
        return ""
    return f" (did you mean {' or '.join(repr(by_lower[word]) for word in close)}?)"


def message_of(error: BaseException) -> str:
    """Returns the text of an exception on one line (a KeyError's text comes without its quotes).

    Args:
      error: any exception.

    Returns:
      Its message, or its class name when it has none.

    Example:
      >>> message_of(KeyError("no such thing"))
      'no such thing'
    """
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def require_extra(modules: Sequence[str], *, purpose: str, extra: str = "cli") -> None:
    """Raises at once if a package of an extra is missing, before any work is done.

    Args:
      modules: import names.
      purpose: what needs them, for the message.
      extra: the extra that has them.

    Raises:
      CommandError: naming what is missing and the command that installs it.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandError(
            f'{purpose} needs {" and ".join(missing)}: pip install "optkit[{extra}]"', exit_code=1
        )
