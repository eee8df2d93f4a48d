"""Solvers over nodes with other settings than the recorded files have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_games import dadao_file, proxskip_file
from tests.golden.replay import replay

OTHER: list[tuple[str, dict[str, Any], Callable[..., dict[str, Any]], int]] = [
    ("proxskip_vip", {"gamma": 0.05, "prob": 0.7}, proxskip_file, 3),
    ("proxskip_vip", {"gamma": 0.3, "prob": 1.0}, proxskip_file, 2),
    ("dadao", {"mu": 0.2, "L": 9.0, "chi1": 3.0}, dadao_file, 3),
    ("dadao", {"mu": 2.0, "L": 2.0, "chi1": 0.4}, dadao_file, 6),
]


@pytest.mark.sweep
@pytest.mark.parametrize(("method", "hyper", "build", "nodes"), OTHER)
def test_other_settings_replay(
    method: str,
    hyper: dict[str, Any],
    build: Callable[..., dict[str, Any]],
    nodes: int,
    tmp_path: Path,
) -> None:
    file = tmp_path / f"{method}.npz"
    meta = json.dumps({"method": method, "hyperparameters": hyper})
    np.savez(file, meta=meta, **build(hyper, nodes, 12, 1))
    result = replay(file)
    assert result.verdict == "PASS", result
