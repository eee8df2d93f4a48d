"""The measurement of a population's forward runs, and compares what it says."""

import jax
import pytest

from benchmarks import evolution_forward as forward


@pytest.mark.slow
def test_quick_run_prints_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with jax.numpy_rank_promotion("allow"):
        forward.main(["--quick", "MLP, 1 input"])
    printed = capsys.readouterr().out
    assert "target <= 3:" in printed
    assert "in full" in printed
