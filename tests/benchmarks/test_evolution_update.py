"""The measurement of a population's update runs, and compares what it says."""

import jax
import pytest

from benchmarks import evolution_update as update


@pytest.mark.slow
def test_quick_run_prints_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with jax.numpy_rank_promotion("allow"):
        update.main(["--quick", "block, 32 tokens"])
    printed = capsys.readouterr().out
    assert "target <= 0.3:" in printed
    assert "rank 1, hoisted" in printed
