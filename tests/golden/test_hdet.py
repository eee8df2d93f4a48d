"""HDET with other settings than the recorded file has: growth, few replicas, other schedules."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_hdet import hdet
from tests.golden.replay import replay

PLAIN: dict[str, Any] = {
    "N": 3,
    "T": 3,
    "total_steps": 14,
    "auto_lr_warmup_steps": 4,
    "alpha": 0.25,
    "max_lr": [0.1, 0.3],
    "loss_scale": 0.02,
    "lr_of_lr": 0.8,
    "momentum_of_lr": 0.6,
    "pct_start": 0.4,
    "div_factor": 10.0,
    "final_div_factor": 3.0,
}
OTHER: dict[str, dict[str, Any]] = {
    "three replicas": {},
    "grows": {"final_div_factor": 100.0, "N": 2, "anneal_strategy": "linear"},
    "no controller": {"auto_lr": False, "three_phase": True},
    "no spread": {"alpha": 0.0},
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", OTHER)
def test_other_settings_replay(name: str, tmp_path: Path) -> None:
    hyper = PLAIN | OTHER[name]
    file = tmp_path / "hdet_autolr.npz"
    meta = json.dumps({"method": "hdet_autolr", "hyperparameters": hyper})
    np.savez(file, meta=meta, **hdet(hyper, 13, 5))
    result = replay(file)
    assert result.verdict == "PASS", result
