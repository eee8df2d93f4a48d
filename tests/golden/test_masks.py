"""Files of LIFT and ID3 with other hyperparameters than the stored ones replay too."""

import pytest

from tests.golden import oracles_masks as oracles
from tests.golden.replay import replay


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(oracles.VARIANTS))
def test_file_with_other_hyperparameters_replays(name, tmp_path):
    method, hyper = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=10)
    result = replay(file)
    assert result.steps == 10
    assert result.verdict == "PASS", str(result)


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "key", "value"), oracles.WRONG)
def test_a_file_replays_with_its_own_hyperparameters_only(name, key, value, tmp_path):
    method, hyper = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=6, said=hyper | {key: value})
    assert replay(file).verdict == "FAIL"
