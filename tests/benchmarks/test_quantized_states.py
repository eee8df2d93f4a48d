"""The measurement of low-bit states runs, and its models have the sizes that they should."""

import jax
import pytest

from benchmarks import quantized_states


def test_quick_run_prints_tables_whose_bytes_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    quantized_states.main(["--quick", "--only", "dynamic8"])
    printed = capsys.readouterr().out
    assert "equal" in printed
    assert "NOT" not in printed


def test_models_have_their_sizes() -> None:
    for make, size in (
        (quantized_states.gpt2_small, 124_439_808),
        (quantized_states.llama_7b, 6_738_415_616),
    ):
        assert sum(leaf.size for leaf in jax.tree.leaves(make())) == size
