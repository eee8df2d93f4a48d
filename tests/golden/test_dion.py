"""Files of other settings and shapes than the stored ones replay too."""

import pytest

from tests.golden import oracles_dion as oracles
from tests.golden.replay import replay


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(oracles.VARIANTS))
def test_file_with_other_hyperparameters_replays(name, tmp_path):
    method, hyper, options = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, **options)
    result = replay(file)
    assert result.steps == options["steps"]
    assert result.verdict == "PASS", str(result)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("dion", "mu", 0.85),
        ("dion", "power_iters", 2),
        ("dion", "epsilon", 1e-2),
        ("dion2", "ef_decay", 0.75),
        ("dion2", "adjust_lr", "spectral_norm"),
        ("dion3", "muon_beta2", 0.85),
        ("dion3", "fraction", 0.6),
    ],
)
def test_a_file_replays_with_its_own_hyperparameters_only(name, key, value, tmp_path):
    method, hyper, options = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper | {key: value}, said=hyper, **options | {"steps": 3})
    assert replay(file).verdict == "FAIL"
