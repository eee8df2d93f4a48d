"""Two processes on one machine train a population as one process does, bit for bit."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _run(processes: int, devices: int) -> list[str]:
    """Starts the processes and returns what each has printed."""
    port = str(_free_port())
    command = [sys.executable, "-m", "tests.evolution.run_process", str(processes)]
    started = [
        subprocess.Popen(
            [*command, str(index), port, str(devices)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        ended = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors
    return [out.strip().splitlines()[-1] for out, _ in ended]


@pytest.mark.slow
def test_processes_exchange_fitnesses_and_end_alike() -> None:
    (alone,) = _run(1, 4)
    first, second = _run(2, 2)
    assert alone.startswith("4 ")
    assert first == second == alone
