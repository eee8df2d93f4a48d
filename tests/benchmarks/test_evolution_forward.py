"""The measurement of a population's forward runs, and compares what it says."""

import jax
import pytest

from benchmarks import evolution_forward as forward


def test_quick_run_prints_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with jax.numpy_rank_promotion("allow"):
        forward.main(["--quick", "MLP, 1 input"])
    printed = capsys.readouterr().out
    assert "target <= 3:" in printed
    assert "in full" in printed


def test_all_sides_compute_one_forward_each_member() -> None:
    case = forward.CASES["MLP, 1 input"]
    with jax.numpy_rank_promotion("allow"):
        runs = forward.runs(case, 4, 8)
        shapes = {
            name: jax.eval_shape(run).shape for name, run in runs.items() if "alone" not in name
        }
    assert set(shapes.values()) == {(4, 1, 8)}
    assert len(shapes) == 6
