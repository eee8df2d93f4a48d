"""Files of schedules and of Schedule-Free AdamW with other numbers and flags replay too."""

import pytest

from tests.golden import oracles_schedules as oracles
from tests.golden.replay import replay


def test_other_schedules_replay_by_their_own_numbers_only(tmp_path):
    file = tmp_path / "schedules.npz"
    oracles.write_schedules(file)
    assert replay(file).verdict == "PASS", str(replay(file))
    for change in ({"decay_steps": 11}, {"min_lr_ratio": 0.31}, {"warmup_steps": 5}):
        oracles.write_schedules(file, change=change)
        assert replay(file).verdict == "FAIL"


@pytest.mark.sweep
@pytest.mark.parametrize("name", oracles.FREE)
def test_other_schedule_free_runs_replay(name, tmp_path):
    file = tmp_path / "schedule_free_adamw.npz"
    oracles.write_free(file, oracles.FREE[name])
    result = replay(file)
    assert (result.verdict, result.steps) == ("PASS", 12), str(result)


@pytest.mark.parametrize(
    "change", [{"r": 0.0}, {"decay_at_z": True}, {"warmup_steps": 3}, {"betas": [0.9, 0.98]}]
)
def test_a_run_replays_by_its_own_numbers_only(change, tmp_path):
    file = tmp_path / "schedule_free_adamw.npz"
    oracles.write_free(file, oracles.FREE["warm"], said=change)
    assert replay(file).verdict == "FAIL"
