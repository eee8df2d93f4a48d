"""Files of adapters with other hyperparameters and schedules than the stored ones replay too."""

import pytest

from tests.golden import oracles_lora as oracles
from tests.golden.replay import replay


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(oracles.VARIANTS))
def test_file_with_other_hyperparameters_replays(name, tmp_path):
    method, hyper = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=6)
    result = replay(file)
    assert result.steps == 6
    assert result.verdict == "PASS", str(result)


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "key", "value"), oracles.WRONG)
def test_a_file_replays_with_its_own_hyperparameters_only(name, key, value, tmp_path):
    method, hyper = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=4, said=hyper | {key: value})
    assert replay(file).verdict == "FAIL"


def test_the_allocator_replays_with_its_own_numbers_only(tmp_path):
    file = tmp_path / "adalora_allocator.npz"
    for change in ({}, {"init_warmup": 0, "mask_interval": 3}, {"final_warmup": 0, "lora_r": 2}):
        oracles.write_adalora(file, oracles.ADA | change, steps=9)
        assert replay(file).verdict == "PASS", change
    for key, value in (("target_rank", 2), ("total_step", 12), ("beta1", 0.9), ("sgd_lr", 0.04)):
        oracles.write_adalora(file, oracles.ADA, steps=9, said=oracles.ADA | {key: value})
        assert replay(file).verdict == "FAIL", key
