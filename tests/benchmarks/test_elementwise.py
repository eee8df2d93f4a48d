"""Element-wise recipes: no arrays of the size of the tree beyond what their maths needs."""

import pytest

from benchmarks import elementwise_recipes as measurement

# What a user's process has, and tests/conftest.py turns off because it takes time.
OPTIMIZED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", measurement.recipes())
def test_no_temporary_copies_beyond_what_the_maths_needs(name: str) -> None:
    shapes = measurement.few_leaves()
    found = measurement.temporary_bytes(name, shapes, OPTIMIZED)
    assert found <= measurement.needed_bytes(name, shapes)
    # Or the table says too much: what is not needed any more has to be taken from it.
    assert found >= measurement.NEEDS.get(name, measurement.Needs()).tree / 2


def test_bytes_of_adamw_are_those_that_others_are_measured_by() -> None:
    shapes = measurement.few_leaves()
    for name in ("optax.adamw", "adamw"):
        assert measurement.bytes_moved(name, shapes) == pytest.approx(
            measurement.ADAMW_BYTES, abs=1e-4
        )
    assert set(measurement.NEEDS) <= set(measurement.recipes())


def test_quick_table_names_every_recipe_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    measurement.main(["--quick", "signum", "sgld"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("signum", "sgld", "noise"))
