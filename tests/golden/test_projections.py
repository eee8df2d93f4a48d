"""Files of AdamP and SGDP with other hyperparameters, flags and shapes than the stored ones."""

import pytest

from tests.golden import oracles_projections as oracles
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
    others = {"delta": 0.0, "wd_ratio": 0.9, "project_buffer": False, "dampening": 0.1}
    for key, value in others.items():
        said = oracles.VARIANTS["sgdp"][1]
        oracles.write(tmp_path / "sgdp.npz", "sgdp", said | {key: value}, said=said, steps=4)
        assert replay(tmp_path / "sgdp.npz").verdict == "FAIL", key
