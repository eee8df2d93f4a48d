"""Files of other hyperparameters, flags and shapes than the stored ones replay too."""

import pytest

from tests.golden import oracles_mars_moments as oracles
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


WRONG = [
    ("mars_adamw_amsgrad", "amsgrad", False),
    ("mars_shampoo_amsgrad", "amsgrad", False),
    ("mars_lion", "gamma", 0.0),
    ("amsgrad", "amsgrad", False),
    ("am_msgd", "model_lambda", 0.3),
    ("am_adamw", "model_lambda", 1.9),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "key", "value"), WRONG)
def test_a_file_replays_with_its_own_hyperparameters_only(name, key, value, tmp_path):
    method, hyper, options = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, said=hyper | {key: value}, **options)
    assert replay(file).verdict == "FAIL"
