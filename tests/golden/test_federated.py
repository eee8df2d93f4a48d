"""Federated servers with other settings than the recorded files have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden import oracles_federated as oracles
from tests.golden.replay import replay

SAMPLES = [100, 30, 70, 20, 80]
KNOWN = {"server_lr": 0.7, "participation_probs": [0.9, 0.4], "n_samples": SAMPLES}
ROUNDS = {"server_lr": 0.5, "K": 3, "participation_probs": [0.9, 0.5, 0.3]}
FLOWER = {"n_samples": [5, 1, 3], "eta": 0.02, "beta_1": 0.7, "beta_2": 0.9, "tau": 0.1}
TIMES = {"T_time": 13, "server_lr": 0.4, "n_samples": SAMPLES[:4], "weights": "weight"}
BATCHES = {"lr": 0.1, "server_lr": 0.6, "K": 2, "p": 0.5, "batch": 2, "big_batch": 5}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg estimated": ("fedavg", KNOWN | {"beta": None, "estimate": True}),
    "fedavg": ("fedavg", KNOWN | {"beta": None, "estimate": False}),
    "fedvarp": ("fedvarp", KNOWN | {"beta": 1.0, "estimate": True}),
    "fedstale estimated": ("fedstale", KNOWN | {"beta": 0.3, "estimate": True}),
    "fedstale": ("fedstale", KNOWN | {"beta": 0.8, "estimate": False}),
    "fedau bounded": ("fedau", ROUNDS),
    "fedau": ("fedau", ROUNDS | {"K": 100000}),
    "participants": ("fedvarp_participant_mean", ROUNDS),
    "mifa": ("mifa", ROUNDS),
    "fedfix": ("fedfix", TIMES | {"time_scenario": "F-60", "scheme": "FedFix-0.35"}),
    "fedbuff": ("fedbuff_weighted", TIMES | {"time_scenario": "F-70", "scheme": "FedBuff-3"}),
    "fedbuff identical": (
        "fedbuff_weighted",
        TIMES | {"time_scenario": "F-70", "scheme": "FedBuff-2", "weights": "identical"},
    ),
    "async identical": (
        "fedasync_weighted",
        TIMES | {"time_scenario": "F-47", "scheme": "Async", "weights": "identical"},
    ),
    "fedlex robust": ("fedlex", {"normalization": "RobustScaler", "lr": 0.01}),
    "fedlex": ("fedlex", {"normalization": "MinMax", "lr": 0.01}),
    "fedamd": ("fedamd", BATCHES),
    "fedadam": ("fedadam_flwr", FLOWER),
    "fedyogi": ("fedyogi_flwr", FLOWER),
    "fedadagrad": ("fedadagrad_flwr", {k: v for k, v in FLOWER.items() if "beta" not in k}),
    "fedavgm": (
        "fedavgm_flwr",
        {"n_samples": [2, 1], "server_learning_rate": 0.3, "server_momentum": 0.5},
    ),
}


def written(method: str, hyper: dict[str, Any]) -> tuple[dict[str, np.ndarray], int]:
    """The arrays of a file, and how many clients it has."""
    if method.endswith("_flwr"):
        return oracles.flower(method, hyper, 7), len(hyper["n_samples"])
    if method == "fedlex":
        return oracles.fedlex(hyper, 3, 5), 0
    if method == "fedamd":
        return oracles.fedamd(hyper, 5, 6), 5
    if "scheme" in hyper:
        return oracles.asynchronous(hyper, 4, 8), 4
    return oracles.participation(method, hyper, 5, 12), 5


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_other_settings_replay(name: str, tmp_path: Path) -> None:
    method, hyper = CASES[name]
    arrays, clients = written(method, hyper)
    file = tmp_path / f"{method}.npz"
    meta = {"method": method, "hyperparameters": hyper, "clients": clients}
    np.savez(file, meta=json.dumps(meta), **arrays)
    result = replay(file)
    assert result.verdict == "PASS", result
