"""FRUGAL, BAdam, LDAdam and factored moments with other settings than the recorded files have."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_memory import trajectory
from tests.golden.replay import replay

_ADAM = {"lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-5, "weight_decay": 0.3}
_FRUGAL = _ADAM | {"update_gap": 3, "density": 0.4}
_BASIS = _FRUGAL | {"proj_side": "std"}
_LION = {k: v for k, v in _FRUGAL.items() if k != "eps"} | {"betas": [0.7, 0.9]}
_SGDM = {k: v for k, v in _LION.items() if k != "betas"} | {"momentum": 0.7}
_BLOCKS = _FRUGAL | {"density": 0.67, "update_gap": 2}
_BADAM = _ADAM | {
    "switch_block_every": 2,
    "switch_mode": "descending",
    "blocks": [["tall", "bias"], ["wide"], ["square"]],
}
_LDADAM = _ADAM | {
    "rank": 3,
    "rho": 0.6,
    "proj_method": "power_iteration",
    "error_feedback": True,
}
_HF = {
    "lr": 0.02,
    "eps": [1e-20, 1e-2],
    "clip_threshold": 0.7,
    "decay_rate": -0.6,
    "beta1": None,
    "weight_decay": 0.3,
    "scale_parameter": True,
    "relative_step": False,
    "warmup_init": False,
}
_RELATIVE = _HF | {"lr": None, "relative_step": True}
_TORCH = {"lr": 0.2, "beta2_decay": -0.6, "eps": [1e-4, 1e-2], "d": 1.5, "weight_decay": 0.3}
_CAME = {
    "lr": 0.01,
    "eps": [1e-12, 1e-8],
    "clip_threshold": 0.6,
    "betas": [0.7, 0.9, 0.95],
    "weight_decay": 0.3,
}
_SM3 = {"lr": 0.05, "momentum": 0.0, "beta": 0.0, "eps": 1e-12}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "frugal svd": ("frugal_svd", _BASIS | {"proj_type": "svd"}),
    "frugal svd left": ("frugal_svd", _BASIS | {"proj_type": "svd", "proj_side": "left"}),
    "frugal svd kept": ("frugal_svd", _BASIS | {"proj_type": "svd", "reset_statistics": False}),
    "frugal random": (
        "frugal_random",
        _BASIS | {"proj_type": "random", "proj_side": "reverse_std", "inactive_lr_scale": 0.3},
    ),
    "frugal random, both sides": (
        "frugal_random",
        _BASIS | {"proj_type": "random", "proj_side": "full", "inactive_update_rule": "sgd"},
    ),
    "frugal randperm": (
        "frugal_randperm",
        _BASIS | {"proj_type": "randperm", "proj_side": "right", "density": 0.25},
    ),
    "frugal randperm kept": (
        "frugal_randperm",
        _BASIS | {"proj_type": "randperm", "reset_statistics": False},
    ),
    "frugal columns": (
        "frugal_columns",
        _FRUGAL | {"coord_choice": "columns", "proj_params_lr_scale": 0.5, "update_gap": 1},
    ),
    "frugal columns kept": (
        "frugal_columns",
        _FRUGAL | {"coord_choice": "columns", "reset_statistics": False},
    ),
    "frugal rows": (
        "frugal_rows",
        _FRUGAL | {"coord_choice": "rows", "inactive_update_rule": "no", "density": 0.7},
    ),
    "frugal randk": (
        "frugal_randk",
        _FRUGAL | {"coord_choice": "randk", "inactive_lr_scale": 0.1, "density": 0.6},
    ),
    "frugal randk kept": (
        "frugal_randk",
        _FRUGAL | {"coord_choice": "randk", "reset_statistics": False},
    ),
    "frugal blocks": ("frugal_block", _BLOCKS | {"block_order": "random"}),
    "frugal blocks, two": (
        "frugal_block_descending",
        _BLOCKS | {"block_order": "descending", "inactive_lr_scale": 0.4},
    ),
    "frugal blocks up": (
        "frugal_block",
        _BLOCKS | {"block_order": "ascending", "inactive_update_rule": "sgd", "density": 0.34},
    ),
    "frugal lion": ("frugal_columns_lion", _LION | {"coord_choice": "columns"}),
    "frugal lion rows": (
        "frugal_columns_lion",
        _LION | {"coord_choice": "rows", "reset_statistics": False},
    ),
    "frugal sgdm": (
        "frugal_columns_sgdm",
        _SGDM | {"coord_choice": "columns", "inactive_update_rule": "sgd"},
    ),
    "frugal sgdm dampened": (
        "frugal_columns_sgdm",
        _SGDM | {"coord_choice": "rows", "dampening": 0.4, "reset_statistics": False},
    ),
    "badam": ("badam", _BADAM),
    "badam up": ("badam", _BADAM | {"switch_mode": "ascending", "switch_block_every": 3}),
    "badam random": ("badam", _BADAM | {"switch_mode": "random", "switch_block_every": 1}),
    "badam fixed": ("badam", _BADAM | {"switch_mode": "fixed", "weight_decay": 0.0}),
    "badam every step": ("badam", _BADAM | {"switch_block_every": 1}),
    "ldadam": ("ldadam", _LDADAM),
    "ldadam svd": ("ldadam", _LDADAM | {"proj_method": "svd", "rho": 0.3}),
    "ldadam without errors": ("ldadam", _LDADAM | {"error_feedback": False, "rank": 1}),
    "adafactor": ("adafactor_hf", _HF),
    "adafactor averaged": ("adafactor_hf", _HF | {"beta1": 0.7, "scale_parameter": False}),
    "adafactor averaged, relative": ("adafactor_hf", _RELATIVE | {"beta1": 0.6}),
    "adafactor warmed up": ("adafactor_hf", _RELATIVE | {"warmup_init": True}),
    "adafactor relative": ("adafactor_hf", _RELATIVE | {"scale_parameter": False}),
    "adafactor of torch": ("adafactor_torch", _TORCH),
    "adafactor of torch, late": ("adafactor_torch", _TORCH | {"lr": 0.9, "beta2_decay": -1.0}),
    "adafactor of torch, plain": ("adafactor_torch", _TORCH | {"eps": [None, 1e-3], "d": 1.0}),
    "came": ("came", _CAME),
    "came unclipped": ("came", _CAME | {"clip_threshold": 50.0, "betas": [0.5, 0.8, 0.6]}),
    "sm3": ("sm3", _SM3 | {"eps": 1e-3}),
    "sm3 averaged": ("sm3", _SM3 | {"beta": 0.9}),
    "sm3 with momentum": ("sm3", _SM3 | {"momentum": 0.8}),
    "sm3 with both": ("sm3", _SM3 | {"momentum": 0.6, "beta": 0.5}),
}


@pytest.mark.sweep
@pytest.mark.parametrize("name", CASES)
def test_other_settings(name: str, tmp_path: Path) -> None:
    method, hyper = CASES[name]
    arrays = trajectory(method, hyper, seed=3)
    file = tmp_path / f"{method}.npz"
    np.savez(file, meta=json.dumps({"method": method, "hyperparameters": hyper}), **arrays)
    result = replay(file)
    assert result.verdict == "PASS", result
