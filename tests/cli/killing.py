"""Runs ``optkit`` and kills its own process with SIGKILL at a chosen moment.

Used by the tests as ``python killing.py MOMENT NUMBER WORDS...``.
"""

import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from optkit.cli import main, running
from optkit.cli.checkpoints import Checkpoints
from optkit.cli.logs import TrainingLog

MARK = ".orbax-checkpoint-tmp"


def die() -> None:
    """Ends this process as a power cut would: no handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_step(number: int) -> None:
    """Dies when a step has been sent off and its result is not there yet."""
    make = running.train_step

    def make_deadly(*arguments: Any) -> Callable[..., Any]:
        step, calls = make(*arguments), []

        def deadly(*inputs: Any) -> Any:
            calls.append(None)
            outputs = step(*inputs)
            if len(calls) == number + 2:  # two steps warm up
                die()
            return outputs

        return deadly

    running.train_step = make_deadly


def in_log(number: int) -> None:
    """Dies when half of a row is written."""
    append = TrainingLog.append

    def deadly(self: TrainingLog, row: dict[str, Any]) -> None:
        if row["step"] == number:
            self._file.write('{"step": ')
            self._file.flush()
            die()
        append(self, row)

    TrainingLog.append = deadly


def _around_save(number: int, before: Callable[[Any], None], after: Callable[[], None]) -> None:
    save = Checkpoints.save

    def deadly(self: Checkpoints, step: int, *rest: Any) -> None:
        if step == number:
            before(self)
        save(self, step, *rest)
        if step == number:
            after()

    Checkpoints.save = deadly


def before_save(number: int) -> None:
    """Dies when the rows are on disk and the checkpoint is not begun."""
    _around_save(number, lambda checkpoints: die(), lambda: None)


def after_save(number: int) -> None:
    """Dies when the checkpoint is complete."""
    _around_save(number, lambda checkpoints: None, die)


def in_save(number: int) -> None:
    """Dies as soon as the unfinished checkpoint is seen on disk."""

    def watch(checkpoints: Checkpoints) -> None:
        directory = pathlib.Path(checkpoints._manager.directory)

        def look() -> None:
            while not any(MARK in path.name for path in directory.iterdir()):
                pass
            die()

        threading.Thread(target=look, daemon=True).start()

    _around_save(number, watch, lambda: None)


if __name__ == "__main__":
    moment, at, *words = sys.argv[1:]
    {"step": in_step, "log": in_log, "before-save": before_save, "after-save": after_save}.get(
        moment, in_save
    )(int(at))
    main(words)
