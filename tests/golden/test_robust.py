"""Robust rules with other settings than the recorded files have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_robust import file_of
from tests.golden.replay import replay

# By method: hyperparameters and the number of workers.
OTHER: list[tuple[str, dict[str, Any], int]] = [
    ("centered_clipping", {"tau": 3.0, "n_iter": 3, "worker_momentum": 0.5, "lr": 0.3}, 6),
    ("krum", {"f": 1, "m": 1, "worker_momentum": 0.0, "lr": 0.1}, 4),
    ("multi_krum_sum", {"f": 3, "m": 5, "worker_momentum": 0.8, "lr": 0.1}, 10),
    ("krum_flwr", {"f": 1, "to_keep": 0, "lr": 1.0}, 5),
    ("multi_krum_flwr", {"f": 3, "to_keep": 2, "lr": 0.1}, 12),
    ("trimmed_mean", {"b": 3, "worker_momentum": 0.9, "lr": 0.1}, 8),
    ("trimmed_mean_flwr", {"proportiontocut": 0.34, "lr": 0.1}, 6),
    ("coordinate_median", {"worker_momentum": 0.9, "lr": 0.1}, 8),
    ("geometric_median", {"T": 3, "nu": 0.7, "worker_momentum": 0.5, "lr": 0.1}, 6),
    ("bulyan_flwr", {"f": 1, "lr": 0.1}, 8),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("method", "hyper", "workers"), OTHER, ids=[row[0] for row in OTHER])
def test_other_settings_replay(
    method: str, hyper: dict[str, Any], workers: int, tmp_path: Path
) -> None:
    file = tmp_path / f"{method}.npz"
    meta = json.dumps({"method": method, "hyperparameters": hyper})
    np.savez(file, meta=meta, **file_of(method, hyper, workers, 3))
    result = replay(file)
    assert result.verdict == "PASS", result
