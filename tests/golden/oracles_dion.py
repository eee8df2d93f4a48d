"""Slow float64 NumPy forms of Dion, Dion2 and Dion3, and files of other settings made with them."""

import json
import math

import numpy as np

from tests.golden.oracles import POLAR_1P02, SHAPES, YOU, adam, decayed, newton_schulz


def other(p, g, state, t, h):
    held = state.get("adam", (0 * p, 0 * p))
    state["adam"], u = adam(held, g, *h["betas"], h["epsilon"], t)
    return decayed(p, u, h["lr"], h["lr"], h["weight_decay"])


def dion(p, g, state, t, h):
    if p.ndim < 2:
        return other(p, g, state, t, h)
    wide = p.shape[0] < p.shape[1]
    m = state.get("m", 0 * p) + g
    b, q = (m.T if wide else m), state["q"]
    left, right = np.zeros((b.shape[0], q.shape[1])), q
    if np.any(b):
        for _ in range(h["power_iters"]):
            left = np.linalg.qr(b @ right)[0]
            right = b.T @ left
        b = b - (1 - h["mu"]) * left @ right.T
    state["m"] = b.T if wide else b
    state["q"] = right / (np.linalg.norm(right, axis=0) + h["epsilon"])
    u = left @ state["q"].T
    scale = math.sqrt(p.shape[0] / p.shape[1])
    return decayed(p, u.T if wide else u, scale * h["lr"], h["lr"], h["weight_decay"])


def orthogonal(x, h):
    if h.get("use_polar_express", True):
        return newton_schulz(x, POLAR_1P02, h["epsilon"], 1.02)
    return newton_schulz(x, YOU, h["epsilon"])


def scale_of(shape, h):
    rows, columns = shape
    return {
        "spectral_norm": math.sqrt(rows / columns),
        "rms_norm": 0.2 * math.sqrt(max(rows, columns)),
        None: 1.0,
    }[h["adjust_lr"]]


def dion2(p, g, state, t, h):
    if p.ndim < 2:
        return other(p, g, state, t, h)
    normalized = "muon_beta2" in h
    m = state["m"] = state.get("m", 0 * p) + g
    axis = 1 if p.shape[0] > p.shape[1] and not normalized else 0
    size = p.shape[axis]
    k = max(1, math.ceil(h["fraction"] * size))
    chosen = np.sort(np.argsort(-np.abs(m).sum(1 - axis), kind="stable")[:k])
    where = (chosen, slice(None)) if axis == 0 else (slice(None), chosen)
    out = orthogonal(m[where], h)
    if normalized:
        v = state.setdefault("v", np.zeros(size))
        v[chosen] = h["muon_beta2"] * v[chosen] + (1 - h["muon_beta2"]) * np.mean(out**2, axis=1)
        scaled = out / (np.sqrt(v[chosen])[:, None] + 1e-8)
        out = scaled * np.linalg.norm(out) / np.linalg.norm(scaled)
    m[where] *= h["mu"] if normalized else h["ef_decay"]
    u = np.zeros_like(p)
    u[where] = out
    return decayed(p, u, scale_of(p.shape, h) * h["lr"], h["lr"], h["weight_decay"])


METHODS = {"dion": dion, "dion_fullrank": dion, "dion2": dion2, "dion3": dion2}


def rank_of(shape, h):
    step = h["rank_multiple_of"]
    return min(step * math.ceil(h["rank_fraction"] * min(shape) / step), *shape)


def write(file, method, hyper, *, steps, shapes=SHAPES, zero=(4,), said=None):
    """Draws parameters and gradients (those of ``square`` zero at some steps), and runs the method.

    ``said`` are the hyperparameters that the file names in place of the true ones.
    """
    rng = np.random.default_rng(41)

    def draw(shape):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    arrays = {f"p0/{k}": draw(shape) for k, shape in shapes.items()}
    params = {k: arrays[f"p0/{k}"].astype(np.float64) for k in shapes}
    states = {k: {} for k in params}
    for k, shape in shapes.items():
        if METHODS[method] is dion and len(shape) == 2:
            arrays[f"h/q0/{k}"] = q = 10 * draw((min(shape), rank_of(shape, hyper)))
            states[k]["q"] = q.astype(np.float64)
    for t in range(steps):
        for k, p in params.items():
            arrays[f"g/{t}/{k}"] = g = draw(p.shape) * np.float32(k != "square" or t not in zero)
            params[k] = METHODS[method](p, g.astype(np.float64), states[k], t + 1, hyper)
            arrays[f"p/{t}/{k}"] = params[k].astype(np.float32)
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


_DION = {
    "lr": 0.03, "mu": 0.8, "betas": [0.8, 0.9], "weight_decay": 0.2, "epsilon": 1e-3,
    "power_iters": 1, "rank_fraction": 0.3, "rank_multiple_of": 1, "qr_method": "qr",
}  # fmt: skip
_DION2 = {
    "lr": 0.03, "fraction": 0.4, "ef_decay": 0.7, "betas": [0.8, 0.9], "weight_decay": 0.2,
    "epsilon": 1e-4, "adjust_lr": "rms_norm", "use_polar_express": False,
}  # fmt: skip
_DION3 = {k: v for k, v in _DION2.items() if k != "ef_decay"} | {"mu": 0.7, "muon_beta2": 0.8}
_BIG = {"tall": (300, 20), "wide": (20, 300), "bias": (5,)}
VARIANTS = {
    "dion": ("dion", _DION, {"steps": 12}),
    "dion_rank_one": ("dion", _DION | {"rank_fraction": 0.01}, {"steps": 6}),
    "dion_rounded": ("dion", _DION | {"rank_multiple_of": 3, "rank_fraction": 0.5}, {"steps": 6}),
    "dion_powers": ("dion", _DION | {"power_iters": 3}, {"steps": 6}),
    "dion_without_feedback": ("dion", _DION | {"mu": 1.0}, {"steps": 6}),
    "dion_cholesky": ("dion", _DION | {"qr_method": "cqr"}, {"steps": 6}),
    "dion_sketched": ("dion", _DION | {"qr_method": "rcqr"}, {"steps": 5, "shapes": _BIG}),
    "dion_starts_at_zero": ("dion", _DION, {"steps": 6, "zero": (0, 1)}),
    "dion_fullrank": ("dion_fullrank", _DION | {"rank_fraction": 1.0}, {"steps": 12}),
    "dion2": ("dion2", _DION2, {"steps": 12}),
    "dion2_all": ("dion2", _DION2 | {"fraction": 1.0}, {"steps": 6}),
    "dion2_one": ("dion2", _DION2 | {"fraction": 0.01, "adjust_lr": None}, {"steps": 6}),
    "dion2_polar": ("dion2", _DION2 | {"use_polar_express": True}, {"steps": 6}),
    "dion3": ("dion3", _DION3, {"steps": 12}),
    "dion3_all": ("dion3", _DION3 | {"fraction": 1.0, "adjust_lr": None}, {"steps": 6}),
    "dion3_polar": (
        "dion3",
        _DION3 | {"use_polar_express": True, "adjust_lr": "spectral_norm"},
        {"steps": 6},
    ),
}
