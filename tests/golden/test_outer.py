"""Outer steps with other settings than the recorded files have: delays, groups, numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_outer import outer
from tests.golden.replay import replay

COMMON = {"inner_lr": 0.01, "outer_lr": 0.5, "outer_momentum": 0.8, "workers": 3}
DECAY = {"inner_wd": 0.2, "inner_betas": [0.8, 0.9]}
PARTS = [["bias"], ["tall"], ["wide"]]
OTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "three replicas": ("diloco", DECAY | {"local_steps": 3}),
    "meet at every step": ("diloco_heavyball", {"local_steps": 1, "outer_momentum": 0.4}),
    "a step late": (
        "streaming_diloco",
        DECAY
        | {"sync_every": 4, "delay": 1, "alpha": 0.5, "fragments": [["wide"], PARTS[0] + PARTS[1]]},
    ),
    "three fragments": (
        "streaming_diloco",
        {"sync_every": 9, "delay": 2, "alpha": 0.25, "fragments": PARTS, "workers": 2},
    ),
    "threes": ("noloco", {"workers": 6, "group": 3, "local_steps": 2, "outer_momentum": 0.3}),
    "another pull": (
        "noloco",
        {"workers": 4, "group": 2, "local_steps": 3, "outer_momentum": 0.2, "gamma": 0.9},
    ),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", OTHER)
def test_other_settings_replay(name: str, tmp_path: Path) -> None:
    method, own = OTHER[name]
    hyper = COMMON | own
    file = tmp_path / f"{method}.npz"
    meta = json.dumps({"method": method, "hyperparameters": hyper})
    np.savez(file, meta=meta, **outer(method, hyper, 9, 5))
    result = replay(file)
    assert result.verdict == "PASS", result
    assert result.worst is not None and result.worst.error < 2e-6
