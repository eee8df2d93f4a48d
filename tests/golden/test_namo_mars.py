"""Files of other hyperparameters, flags and shapes than the stored ones replay too."""

import pytest

from tests.golden import oracles_namo_mars as oracles
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


def test_a_file_replays_with_its_own_hyperparameters_only(tmp_path):
    method, hyper, options = oracles.VARIANTS["namo_d"]
    file = tmp_path / "namo_d.npz"
    for key, value in {"mu2": 0.95, "adamnorm_eps": 0.1, "col_state_clamp_c": 0.8}.items():
        oracles.write(file, method, hyper | {key: value}, said=hyper, **options | {"steps": 3})
        assert replay(file).verdict == "FAIL", key
