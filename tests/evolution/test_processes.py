"""Two processes on one machine train a population as one process does, bit for bit."""

import pytest

from tests.processes import free_port, printed, started

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


def _run(processes: int, devices: int) -> list[str]:
    """What each process prints at last."""
    port = free_port()
    program = ("-m", "tests.evolution.run_process", processes)
    with started([(*program, index, port, devices) for index in range(processes)]) as running:
        return [lines[-1] for lines in printed(running)]


def test_processes_exchange_fitnesses_and_end_alike() -> None:
    (alone,) = _run(1, 4)
    first, second = _run(2, 2)
    assert alone.startswith("4 ")
    assert first == second == alone
