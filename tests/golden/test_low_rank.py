"""Low-rank methods with other settings than the recorded files have, against slow NumPy forms."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden import oracles_low_rank
from tests.golden.replay import replay

_BASE = {
    "lr": 0.02,
    "betas": [0.8, 0.95],
    "eps": 1e-5,
    "weight_decay": 0.3,
    "rank": 3,
    "update_proj_gap": 2,
}
_APOLLO = _BASE | {"proj_type": "std", "proj": "random", "scale": 2.0, "scale_front": False}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "galore left": ("galore_adamw", _BASE | {"scale": 0.7, "proj_type": "left"}),
    "galore reverse": ("galore_adamw", _BASE | {"scale": 0.7, "proj_type": "reverse_std"}),
    "apollo": ("apollo", _APOLLO | {"scale_type": "channel"}),
    "apollo front": ("apollo", _APOLLO | {"scale_type": "tensor", "scale_front": True}),
    "mini": ("apollo_mini", _APOLLO | {"rank": 1, "scale_type": "tensor", "scale": 9.0}),
    "fira": ("fira", _BASE | {"alpha": 0.6, "proj_type": "std"}),
    "fira rmsprop": ("fira", _BASE | {"alpha": 0.6, "proj_type": "std", "inner": "rmsprop"}),
    "apollo svd": (
        "apollo_svd",
        _APOLLO | {"proj": "svd", "scale_type": "tensor", "update_proj_gap": 3},
    ),
    "apollo rank 1": ("apollo", _APOLLO | {"scale_type": "channel", "rank": 1, "scale": 0.5}),
    "mini front": (
        "apollo_mini",
        _APOLLO | {"rank": 2, "scale_type": "channel", "scale": 3.0, "scale_front": True},
    ),
    "galore full rank": (
        "galore_adamw",
        _BASE | {"scale": 1.0, "proj_type": "std", "rank": 5, "update_proj_gap": 1},
    ),
    "fira left": ("fira", _BASE | {"alpha": 0.3, "proj_type": "left", "update_proj_gap": 1}),
    "fira right": ("fira", _BASE | {"alpha": 1.0, "proj_type": "right"}),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_other_settings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method, hyper = CASES[name]
    # Their bases are no singular vectors: they are fed only.
    monkeypatch.setattr("tests.golden.cases_low_rank.END_TO_END", False)
    arrays = oracles_low_rank.trajectory(method, hyper, seed=3)
    meta = {"method": method, "hyperparameters": hyper}
    file = tmp_path / f"{method}.npz"
    np.savez(file, meta=json.dumps(meta), **arrays)
    result = replay(file)
    assert result.verdict == "PASS", result
