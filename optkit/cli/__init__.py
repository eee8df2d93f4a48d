"""The command line: list, show, plan, train, evolve, race and preflight the catalogued methods."""

import importlib.util
import sys
from collections.abc import Sequence

__all__ = ["main"]

_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the ``optkit`` command and leave through ``SystemExit``.

    Exit codes: 0 success, 1 a run that failed (a loss that is not finite, a missing extra), 2 wrong
    use (unknown name, wrong value, refused resume), 130 stopped by Ctrl-C.

    Args:
      arguments: the words after ``optkit``; ``None`` takes them from ``sys.argv``.

    Raises:
      SystemExit: always, with the exit code.

    Example:
      >>> from optkit.cli import main
      >>> try:
      ...     main(["show", "adamw", "--no-such-option"])
      ... except SystemExit as stop:
      ...     print(stop.code)
      2
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f'error: the command line needs {" and ".join(missing)}: pip install "optkit[cli]"',
            file=sys.stderr,
        )
        raise SystemExit(1)
    from optkit.cli.app import run  # needs typer and rich, so only after the check above

    raise SystemExit(run(arguments))
