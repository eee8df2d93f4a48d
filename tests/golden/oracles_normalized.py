"""Slow float64 NumPy forms of NorMuon, AdaMuon and AuON, and files of other hyperparameters."""

import json

import numpy as np

from tests.golden.oracles import (
    JORDAN,
    POLAR_1P02,
    SHAPES,
    YOU,
    adam,
    decayed,
    momentum,
    newton_schulz,
)


def aux_adam(p, g, state, t, h):
    held = state.get("adam", (0 * p, 0 * p))
    state["adam"], u = adam(held, g, *h["adam_betas"], h["adam_eps"], t)
    return decayed(p, u, h["adam_lr"], h["adam_lr"], h["adam_weight_decay"])


def by_rows(out, state, beta, eps):
    square = np.mean(out * out, axis=1, keepdims=True)
    state["v"] = beta * state.get("v", 0 * square) + (1 - beta) * square
    x = out / (np.sqrt(state["v"]) + eps)
    return x * (np.linalg.norm(out) / max(np.linalg.norm(x), 1e-30))


def normuon(p, g, state, t, h):
    if p.ndim < 2:
        return aux_adam(p, g, state, t, h)
    state["m"], u = momentum(state.get("m", 0 * p), g, h["momentum"], h.get("nesterov", True), True)
    out = by_rows(newton_schulz(u, JORDAN[:1] * h.get("ns_steps", 5)), state, h["beta2"], 1e-10)
    out = out * np.sqrt(max(1.0, p.shape[0] / p.shape[1]))
    return decayed(p, out, h["lr"], h["lr"], h["weight_decay"])


def normuon_dion(p, g, state, t, h):
    if p.ndim < 2:
        held = state.get("adam", (0 * p, 0 * p))
        state["adam"], u = adam(held, g, *h["betas"], h["epsilon"], t)
        return decayed(p, u, h["lr"], h["lr"], h["weight_decay"], h["cautious_wd"])
    state["m"], u = momentum(state.get("m", 0 * p), g, h["mu"], h["nesterov"], False)
    if h["use_polar_express"]:
        out = newton_schulz(u, POLAR_1P02, h["epsilon"], 1.02)
    else:
        out = newton_schulz(u, YOU, h["epsilon"])
    out = by_rows(out, state, h["muon_beta2"], 1e-8)
    rows, cols = p.shape
    rms = 0.2 * np.sqrt(max(rows, cols))
    scale = {"spectral_norm": np.sqrt(rows / cols), "rms_norm": rms, None: 1.0}[h["adjust_lr"]]
    return decayed(p, out, h["lr"] * scale, h["lr"], h["weight_decay"], h["cautious_wd"])


def adamuon(p, g, state, t, h):
    beta = h["momentum"]
    state["m"], u = momentum(state.get("m", 0 * p), g, beta, h["nesterov"], True)
    out = newton_schulz(np.sign(u), JORDAN[:1] * h["ns_steps"])
    state["v"] = beta * state.get("v", 0 * p) + (1 - beta) * out * out
    x = out / (np.sqrt(state["v"]) + h["eps"])
    x = x * 0.2 * np.sqrt(x.size) / (np.linalg.norm(x) + h["eps"])
    return decayed(p, x, h["lr"], h["lr"], h["weight_decay"])


def auon(p, g, state, t, h):
    p = p * (1 - h["lr"] * h["weight_decay"])
    state["m"], u = momentum(state.get("m", 0 * p), g, h["momentum"], True, True)
    if "ns_steps" in h and p.ndim >= 2:
        u = newton_schulz(u, JORDAN[:1] * h["ns_steps"])
    if not np.any(u):
        return p
    z = u / (np.linalg.norm(u) + 1e-7)
    return p - h["lr"] * u / np.sqrt(np.mean(np.cosh(h["gamma"] * z) ** 2))


METHODS = {
    "normuon": normuon,
    "normuon_dion": normuon_dion,
    "adamuon": adamuon,
    "auon": auon,
    "hybrid_auon": auon,
}


def write(file, method, hyper, *, steps, seed=99, silent=3, said=None):
    """Stores a trajectory; the gradients of "square" are zero in the first steps."""
    rng = np.random.default_rng(seed)
    shapes = {k: v for k, v in SHAPES.items() if method != "adamuon" or len(v) == 2}
    arrays, params, states = {}, {}, {k: {} for k in shapes}
    for k, shape in shapes.items():
        arrays[f"p0/{k}"] = np.float32(0.1 * rng.standard_normal(shape))
        params[k] = np.float64(arrays[f"p0/{k}"])
    for t in range(steps):
        for k, p in params.items():
            g = np.float32(0.1 * rng.standard_normal(p.shape))
            arrays[f"g/{t}/{k}"] = g = 0 * g if t < silent and k == "square" else g
            params[k] = METHODS[method](p, np.float64(g), states[k], t + 1, hyper)
            arrays[f"p/{t}/{k}"] = np.float32(params[k])
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


_NORMUON = {
    "lr": 0.05, "momentum": 0.9, "beta2": 0.8, "weight_decay": 0.2, "adam_lr": 0.003,
    "adam_betas": [0.8, 0.9], "adam_eps": 1e-8, "adam_weight_decay": 0.3,
}  # fmt: skip
_DION = {
    "lr": 0.03, "mu": 0.9, "muon_beta2": 0.7, "betas": [0.85, 0.97], "weight_decay": 0.2,
    "cautious_wd": True, "epsilon": 1e-6, "nesterov": True, "adjust_lr": "rms_norm",
    "use_polar_express": False,
}  # fmt: skip
_ADAMUON = {
    "lr": 0.01, "weight_decay": 0.3, "momentum": 0.8, "nesterov": False, "ns_steps": 3,
    "eps": 1e-4,
}  # fmt: skip
_AUON = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.5, "gamma": 4.0}

# name -> (method, hyperparameters, steps): other values and flags than the stored files have.
VARIANTS = {
    "normuon": ("normuon", _NORMUON, 12),
    "normuon_flags": ("normuon", _NORMUON | {"nesterov": False, "ns_steps": 3}, 6),
    "normuon_dion": ("normuon_dion", _DION, 12),
    "normuon_dion_unscaled": ("normuon_dion", _DION | {"adjust_lr": None, "nesterov": False}, 6),
    "normuon_dion_spectral": (
        "normuon_dion",
        _DION | {"adjust_lr": "spectral_norm", "use_polar_express": True, "cautious_wd": False},
        6,
    ),
    "adamuon": ("adamuon", _ADAMUON, 12),
    "adamuon_nesterov": ("adamuon", _ADAMUON | {"nesterov": True, "ns_steps": 5}, 6),
    "auon": ("auon", _AUON, 12),
    "hybrid_auon": ("hybrid_auon", _AUON | {"ns_steps": 1}, 12),
    "hybrid_auon_5": ("hybrid_auon", _AUON | {"ns_steps": 5, "gamma": 0.5}, 6),
}
