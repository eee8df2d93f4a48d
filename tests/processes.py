"""Programs that run as several processes on this machine, found at one free port."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Started = list["subprocess.Popen[str]"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def started(commands: Sequence[Sequence[object]], **variables: object) -> Iterator[Started]:
    """Starts Python with these arguments; whatever still runs at the end is killed."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    processes = [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def printed(processes: Started, timeout: float = 240) -> list[list[str]]:
    """Waits for all, and returns the lines that each has printed."""
    ended = [process.communicate(timeout=timeout) for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    return [out.strip().splitlines() for out, _ in ended]
