"""Files of NorMuon, AdaMuon and AuON with other hyperparameters and flags replay too."""

import pytest

from tests.golden import oracles_normalized as oracles
from tests.golden.replay import replay


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(oracles.VARIANTS))
def test_file_with_other_hyperparameters_replays(name, tmp_path):
    method, hyper, steps = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=steps)
    result = replay(file)
    assert result.steps == steps
    assert result.verdict == "PASS", str(result)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("normuon", "beta2", 0.9),
        ("normuon_dion", "muon_beta2", 0.9),
        ("normuon_dion", "cautious_wd", False),
        ("adamuon", "eps", 1e-2),
        ("auon", "gamma", 3.0),
        ("hybrid_auon", "gamma", 3.0),
        ("hybrid_auon", "ns_steps", 2),
    ],
)
def test_a_file_replays_with_its_own_hyperparameters_only(name, key, value, tmp_path):
    method, hyper, _ = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper | {key: value}, steps=4, silent=0, said=hyper)
    assert replay(file).verdict == "FAIL"
