"""Compressed averages with other settings than the recorded files have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden import oracles_communication as oracles
from tests.golden.replay import replay

_RATE = {"lr": 0.05, "min_compression_rate": 0.0, "start": 1}
POWERSGD: dict[str, tuple[str, int, dict[str, Any]]] = {
    "basic": ("powersgd", 3, {"rank": 3, "iters": 2, "lr": 0.05, "mom": 0.9}),
    "epfl rank 2": ("powersgd_epfl", 2, _RATE | {"rank": 2, "iters": 2}),
    "epfl pays": ("powersgd_epfl", 4, _RATE | {"rank": 2, "iters": 1, "min_compression_rate": 2.2}),
    "torch": ("powersgd_torch", 2, _RATE | {"rank": 3}),
    "torch eps": ("powersgd_torch", 3, _RATE | {"rank": 2, "orth_eps": 1e-2}),
    "torch forgets": ("powersgd_torch", 3, _RATE | {"rank": 2, "use_error_feedback": False}),
}


def check(method: str, hyper: dict[str, Any], arrays: dict[str, np.ndarray], folder: Path) -> None:
    file = folder / f"{method}.npz"
    np.savez(file, meta=json.dumps({"method": method, "hyperparameters": hyper}), **arrays)
    result = replay(file)
    assert result.verdict == "PASS", result


@pytest.mark.sweep
@pytest.mark.parametrize("name", POWERSGD)
def test_other_powersgd(name: str, tmp_path: Path) -> None:
    method, count, hyper = POWERSGD[name]
    prefix = "w" if method == "powersgd" else ""
    workers = [f"{prefix}{i}" for i in range(count)]
    check(method, hyper, oracles.powersgd(method, hyper, 11, workers), tmp_path)


_ADAM = {"T": 6, "lr": 0.01, "betas": [0.8, 0.9], "eps": 1e-3, "wd": 0.1}
ONEBIT: dict[str, tuple[int, dict[str, Any]]] = {
    "three": (3, _ADAM | {"freeze": 3}),
    "at once": (4, _ADAM | {"freeze": 1, "wd": 0.0}),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", ONEBIT)
def test_other_onebit_adam(name: str, tmp_path: Path) -> None:
    count, hyper = ONEBIT[name]
    workers = [f"w{i}" for i in range(count)]
    check("onebit_adam", hyper, oracles.onebit_adam(hyper, 12, workers), tmp_path)
