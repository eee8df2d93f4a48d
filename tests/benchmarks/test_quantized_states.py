"""The measurement of low-bit states runs."""

import pytest

from benchmarks import quantized_states


@pytest.mark.slow
def test_quick_run_prints_tables_whose_bytes_are_equal(capsys: pytest.CaptureFixture[str]) -> None:
    quantized_states.main(["--quick", "--only", "dynamic8"])
    printed = capsys.readouterr().out
    assert "equal" in printed
    assert "NOT" not in printed
