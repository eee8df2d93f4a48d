"""The seconds of a process: of one that works, and of one that fails."""

import sys

import pytest

from benchmarks import preflight_time


def test_a_process_is_timed_and_a_failure_is_told() -> None:
    words = [sys.executable, "-S", "-c", "x = sum(range(3_000_000))"]
    wall, cpu = preflight_time.seconds_of(words)
    assert wall > 0.0 and cpu > 0.01
    with pytest.raises(RuntimeError, match="ended with 3"):
        preflight_time.seconds_of([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_it_calls_what_a_user_would() -> None:
    words = preflight_time.command("muon", "gpt2-medium", "v5e:4x4")
    assert words[1:4] == ["-m", "optkit", "preflight"] and words[-2:] == ["--topology", "v5e:4x4"]
