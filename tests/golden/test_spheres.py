"""Scion and HyperP with other flags than the stored files have, against slow float64 NumPy."""

import json

import numpy as np
import pytest

from tests.golden import oracles
from tests.golden.replay import DATA, load, replay


def scion_lmo(name, d, h):
    """(direction, scale) of a leaf in torch layout: rows are outputs."""
    if name == "bias":
        return d / (np.sqrt(np.mean(d * d)) + 1e-8), h["scale_hidden"]
    if name == "head":
        return np.sign(d) / d.shape[1], h["scale_head"]
    if name == "emb":  # (tokens, features): each token by itself
        rms = np.sqrt(np.mean(d * d, axis=1, keepdims=True))
        return d / (rms * (d.shape[0] if h["emb_normalized"] else 1) + 1e-8), h["scale_emb"]
    if name == "rown":
        length = np.linalg.norm(d, axis=1, keepdims=True)
        return d / (length * np.sqrt(d.shape[1]) + 1e-8), 1.0
    out = oracles.newton_schulz(d.reshape(len(d), -1), oracles.JORDAN).reshape(d.shape)
    positions = d.shape[2] ** (d.ndim - 2) if d.ndim > 2 else 1
    return out * np.sqrt(d.shape[0] / d.shape[1]) / positions, h["scale_hidden"]


def scion(name, p, g, state, t, h):
    state["d"] = (1 - h["momentum"]) * state.get("d", 0 * p) + h["momentum"] * g
    direction, scale = scion_lmo(name, state["d"], h)
    p = p if h["unconstrained"] else (1 - h["lr"]) * p
    return p - h["lr"] * scale * direction


def on_sphere(p, u, h, weight_decay):
    aligned = (p * u >= 0) if h["cautious_wd"] else 1.0
    p = p - h["lr"] * weight_decay * aligned * p
    radius = np.linalg.norm(p)
    p = p - h["lr"] * radius / max(np.linalg.norm(u), h["epsilon"]) * u
    return p * radius / max(np.linalg.norm(p), h["epsilon"])


def hyperp(name, p, g, state, t, h):
    if name in ("head", "emb", "bias"):
        held = state.get("adam", (0 * p, 0 * p))
        state["adam"], u = oracles.adam(held, g, *h["betas"], h["epsilon"], t)
        decay = h["vector_weight_decay"]
        if name == "head":
            return on_sphere(p, u, h, decay)
        return oracles.decayed(p, u, h["lr"], h["lr"], decay, h["cautious_wd"])
    state["m"], u = oracles.momentum(state.get("m", 0 * p), g, h["mu"], h["nesterov"], False)
    return on_sphere(p, oracles.newton_schulz(u, oracles.YOU, h["epsilon"]), h, h["weight_decay"])


_SCION = {
    "lr": 0.03, "momentum": 0.4, "unconstrained": False, "scale_hidden": 2.0, "scale_emb": 0.7,
    "scale_head": 5.0, "emb_normalized": True,
}  # fmt: skip
_HYPERP = {
    "lr": 0.04, "mu": 0.9, "betas": [0.8, 0.9], "weight_decay": 0.5, "vector_weight_decay": 0.2,
    "cautious_wd": False, "epsilon": 1e-7, "nesterov": False,
}  # fmt: skip
VARIANTS = {
    "scion": (scion, "scion", _SCION, 12),
    "scion_unconstrained": (scion, "scion", _SCION | {"unconstrained": True}, 6),
    "scion_without_momentum": (
        scion, "scion", _SCION | {"momentum": 1.0, "emb_normalized": False}, 6,
    ),
    "hyperp": (hyperp, "hyperp", _HYPERP, 12),
    "hyperp_cautious": (hyperp, "hyperp", _HYPERP | {"cautious_wd": True, "nesterov": True}, 12),
}  # fmt: skip


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_file_with_other_flags_replays(name, tmp_path):
    update, method, hyper, steps = VARIANTS[name]
    stored = load(DATA / f"{method}.npz")
    rng = np.random.default_rng(77)
    arrays = {key: value for key, value in stored.arrays.items() if key.startswith("p0/")}
    params = {key[3:]: value.astype(np.float64) for key, value in arrays.items()}
    states = {leaf: {} for leaf in params}
    for t in range(steps):
        for leaf, p in params.items():
            g = (0.1 * rng.standard_normal(p.shape)).astype(np.float32)
            g = 0 * g if t == 4 and leaf == "square" else g
            arrays[f"g/{t}/{leaf}"] = g
            params[leaf] = update(leaf, p, g.astype(np.float64), states[leaf], t + 1, hyper)
            arrays[f"p/{t}/{leaf}"] = params[leaf].astype(np.float32)
    file = tmp_path / "mine.npz"
    np.savez(file, meta=json.dumps({"method": method, "hyperparameters": hyper}), **arrays)
    result = replay(file)
    assert result.verdict == "PASS" and result.steps == steps, str(result)
