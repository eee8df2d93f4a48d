"""Files of other hyperparameters, flags and shapes than the stored ones replay too."""

import pytest

from tests.golden import oracles_continual as oracles
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


WRONG = {
    "xgrad_amsgrad": {"s": 1, "amsgrad": False, "weight_decay": 0.0},
    "upgd_adam": {"beta_utility": 0.5, "sigma": 0.1, "weight_decay": 0.0, "eps": 0.1},
    "ewc_online": {"lamda": 1.0, "beta_weight": 0.5, "beta_fisher": 0.5},
    "classp_paper": {"threshold": 0.0, "power": 1, "epsilon": 0.1},
    "langevin_adam": {"noise_scale": 0.1, "weight_decay": 0.0, "eps": 0.1},
    "adam_sgld": {"a": 1.0},
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", WRONG)
def test_a_file_replays_with_its_own_hyperparameters_only(name, tmp_path):
    method, hyper, _ = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    for key, value in WRONG[name].items():
        oracles.write(file, method, hyper | {key: value}, said=hyper, steps=3)
        assert replay(file).verdict == "FAIL", key
