"""Files of PolyStep with other hyperparameters than the stored ones replay too."""

import pytest

from tests.golden import oracles_polystep as oracles
from tests.golden.replay import replay


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(oracles.VARIANTS))
def test_file_with_other_hyperparameters_replays(name, tmp_path):
    method, hyper, options = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=5, **options)
    result = replay(file)
    assert result.steps == 5
    assert result.verdict == "PASS", str(result)


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "key", "value"), oracles.WRONG)
def test_a_file_replays_with_its_own_hyperparameters_only(name, key, value, tmp_path):
    method, hyper, options = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=4, said=hyper | {key: value}, **options)
    assert replay(file).verdict == "FAIL"
