"""SOAP, PSGD, Shampoo and OASIS with other settings than the stored files have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.golden.oracles_curvature import Tree, oasis, psgd_kron, soap
from tests.golden.oracles_shampoo import shampoo
from tests.golden.replay import replay

Setting = dict[str, Any]

SOAP: Setting = {
    "lr": 0.02,
    "betas": [0.9, 0.8],
    "shampoo_beta": -1,
    "eps": 1e-6,
    "weight_decay": 0.1,
    "precondition_frequency": 4,
    "max_precond_dim": 4,
    "merge_dims": False,
    "precondition_1d": False,
    "normalize_grads": False,
    "correct_bias": True,
}
PSGD: Setting = {
    "learning_rate": 0.02,
    "b1": 0.8,
    "weight_decay": 0.0,
    "preconditioner_update_probability": 1.0,
    "max_size_triangular": 8192,
    "min_ndim_triangular": 2,
    "memory_save_mode": None,
    "momentum_into_precond_update": True,
    "preconditioner_lr": 0.3,
    "preconditioner_init_scale": 1.0,
}
COURSE = {"max_prob": 0.9, "min_prob": 0.2, "decay": 0.3, "flat_start": 2}
SHAMPOO: Setting = {
    "lr": 0.03,
    "betas": [0.8, 0.9],
    "beta3": -1.0,
    "epsilon": 0.01,
    "weight_decay": 0.1,
    "weight_decay_type": "DECOUPLED",
    "max_preconditioner_dim": 4,
    "target_parameter_dimensionality": 1,
    "precondition_frequency": 3,
    "start_preconditioning_step": -1,
    "use_bias_correction": True,
    "grafting": None,
    "inv_root_override": 0,
    "preconditioner": "RootInv, eigh",
}
OASIS: Setting = {
    "lr": 1.0,
    "beta1": 0.0,
    "beta2": 0.8,
    "alpha": 0.1,
    "eta0": 0.01,
    "adaptive": True,
    "weight_decay": 0.0,
}

ORACLES: dict[str, tuple[Callable[..., Tree], Setting]] = {
    "soap": (soap, SOAP),
    "psgd_kron": (psgd_kron, PSGD),
    "shampoo": (shampoo, SHAMPOO),
    "oasis": (oasis, OASIS),
}
# What each setting changes has to matter: see the test below.
OTHER: list[tuple[str, Setting]] = [
    ("soap", {"shampoo_beta": 0.6, "normalize_grads": True, "precondition_frequency": 1}),
    ("soap", {"merge_dims": True, "max_precond_dim": 6, "correct_bias": False}),
    ("soap", {"precondition_1d": True, "max_precond_dim": 10, "precondition_frequency": 2}),
    ("soap", {"precondition_1d": True, "precondition_frequency": 1}),
    ("soap", {"eps": 0.1, "betas": [0.5, 0.95], "lr": 0.1, "weight_decay": 0.0}),
    ("psgd_kron", {"preconditioner_update_probability": COURSE, "weight_decay": 0.3}),
    ("psgd_kron", {"memory_save_mode": "one_diag", "momentum_into_precond_update": False}),
    ("psgd_kron", {"memory_save_mode": "all_diag", "preconditioner_init_scale": 3.0}),
    ("psgd_kron", {"max_size_triangular": 3, "preconditioner_update_probability": 0.4}),
    ("psgd_kron", {"min_ndim_triangular": 1, "preconditioner_lr": 0.6, "b1": 0.3}),
    ("psgd_kron", {"min_ndim_triangular": 3, "learning_rate": 0.1}),
    (
        "shampoo",
        {"grafting": "RMSprop(beta2=0.8, epsilon=0.01)", "weight_decay_type": "L2"}
        | {"start_preconditioning_step": 1, "max_preconditioner_dim": 2},
    ),
    (
        "shampoo",
        {"betas": [0.6, 1.0], "weight_decay_type": "INDEPENDENT", "inv_root_override": [1, 3]}
        | {"target_parameter_dimensionality": 3, "max_preconditioner_dim": 6},
    ),
    (
        "shampoo",
        {"grafting": "AdaGrad(epsilon=0.001)", "beta3": 0.5, "precondition_frequency": 2}
        | {"preconditioner": "RootInv, coupled Newton", "max_preconditioner_dim": 6},
    ),
    (
        "shampoo",
        {"grafting": "Adam(beta2=0.7, epsilon=0.001)", "start_preconditioning_step": 5}
        | {"use_bias_correction": False, "weight_decay": 0.5},
    ),
    ("shampoo", {"grafting": "SGD", "inv_root_override": 3, "epsilon": 0.3}),
    ("shampoo", {"preconditioner": "RootInv, eigh, exponent -1/(3*order)"}),
    ("shampoo", {"max_preconditioner_dim": 1024, "target_parameter_dimensionality": 2}),
    ("oasis", {"beta2": 0.95, "alpha": 1.0, "eta0": 0.1}),
    ("oasis", {"eta0": 1e-5}),
    ("oasis", {"beta1": 0.7, "weight_decay": 0.1, "lr": 0.5}),
    ("oasis", {"adaptive": False, "eta0": 0.03}),
]
IDS = [f"{name} {' '.join(setting)}" for name, setting in OTHER]


def drawn(name: str, setting: Setting, steps: int = 9) -> tuple[Setting, Tree]:
    """Hyperparameters and arrays of a file."""
    oracle, plain = ORACLES[name]
    hyper = plain | setting
    return hyper, oracle(hyper, np.random.default_rng(3), steps)


def steps_of(arrays: Tree) -> np.ndarray:
    """All parameters after all steps."""
    return np.concatenate([arrays[k].ravel() for k in sorted(arrays) if k.startswith("p/")])


@pytest.mark.sweep
@pytest.mark.parametrize(("name", "setting"), OTHER, ids=IDS)
def test_other_settings_replay(name: str, setting: Setting, tmp_path: Path) -> None:
    hyper, arrays = drawn(name, setting)
    for key in setting:
        if "Newton" not in str(setting[key]):  # (A way to the same roots.)
            _, others = drawn(name, {k: v for k, v in setting.items() if k != key})
            assert np.max(np.abs(steps_of(arrays) - steps_of(others))) > 2e-3, f"{key} is idle"
    file = tmp_path / f"{name}.npz"
    np.savez(file, meta=json.dumps({"method": name, "hyperparameters": hyper}), **arrays)
    result = replay(file)
    assert (result.verdict, result.steps) == ("PASS", 9), result
