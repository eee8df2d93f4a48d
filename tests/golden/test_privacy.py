"""DP-SGD and DP-BREM with other settings than the recorded files have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_privacy import dp_aggregate, dp_brem
from tests.golden.replay import replay

DP = {"clip": 1.0, "noise_multiplier": 0.5, "key": 0, "lr": 0.1, "momentum": None}
BREM = {
    "R": 1.0, "C": 0.5, "sigma": 0.1, "beta": 0.9, "q": 1.0, "lr": 0.5, "batch": 3, "decay": False
}  # fmt: skip
OTHER: dict[str, tuple[Callable[..., Any], dict[str, Any], int, int]] = {
    "momentum": (dp_aggregate, DP | {"momentum": 0.8, "key": 11}, 5, 3),
    "long": (dp_aggregate, DP | {"clip": 100.0, "noise_multiplier": 0.01}, 4, 5),
    "silent": (dp_aggregate, DP | {"noise_multiplier": 0.0}, 3, 4),
    "half report, lengths fall": (dp_brem, BREM | {"q": 0.5, "decay": True}, 8, 6),
    "few, no momentum": (dp_brem, BREM | {"q": 0.3, "beta": 0.0, "batch": 2, "lr": 0.1}, 7, 3),
    "nothing clipped": (dp_brem, BREM | {"R": -1, "C": -1, "decay": True, "scale": 0.01}, 4, 3),
    "silent clients": (dp_brem, BREM | {"sigma": 0.0, "q": 0.6}, 5, 4),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", OTHER)
def test_other_settings_replay(name: str, tmp_path: Path) -> None:
    oracle, hyper, steps, count = OTHER[name]
    meta = {"method": oracle.__name__, "hyperparameters": hyper, "T": steps}
    meta |= {"clients": count} if oracle is dp_brem else {"batch": count}
    file = tmp_path / "other.npz"
    np.savez(file, meta=json.dumps(meta), **oracle(hyper, steps, count))
    result = replay(file)
    assert result.verdict == "PASS", result
