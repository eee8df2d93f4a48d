"""Slow float64 NumPy forms of AdamP and SGDP, and files of other hyperparameters made with them."""

import json

import numpy as np

from tests.golden.oracles import SHAPES


def project(p, g, u, h):
    """Row by row as the paper writes it; the first view that is near perpendicular decides."""
    if p.ndim < 2:
        return u, 1.0
    for shape in ((len(p), -1), (1, -1)):
        rows = [x.reshape(shape) for x in (p, g, u)]
        cosines, out = [], []
        for w, gradient, update in zip(*rows, strict=True):
            size, length = np.linalg.norm(gradient), np.linalg.norm(w)
            cosines.append(abs(gradient @ w) / (max(size, h["eps"]) * max(length, h["eps"])))
            q = w / (length + h["eps"])
            out.append(update - q * (q @ update))
        if max(cosines) < h["delta"] / np.sqrt(rows[0].shape[1]):
            return np.stack(out).reshape(p.shape), h["wd_ratio"]
    return u, 1.0


def adamp(p, g, state, t, h):
    b1, b2 = h["betas"]
    m, v = state.get("mv", (0 * p, 0 * p))
    m, v = state["mv"] = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    top = b1 * m + (1 - b1) * g if h["nesterov"] else m
    u, r = project(p, g, top / (np.sqrt(v) / np.sqrt(1 - b2**t) + h["eps"]), h)
    return (1 - h["lr"] * h["weight_decay"] * r) * p - h["lr"] / (1 - b1**t) * u


def sgdp(p, g, state, t, h):
    mu = h["momentum"]
    m = state["m"] = mu * state.get("m", 0 * p) + (1 - h["dampening"]) * g
    u, r = project(p, g, g + mu * m if h["nesterov"] else m, h)
    if h.get("project_buffer", not h["nesterov"]):
        state["m"] = u
    return (1 - h["lr"] * h["weight_decay"] * r / (1 - mu)) * p - h["lr"] * u


METHODS = {"adamp": adamp, "sgdp": sgdp}


def turned(p, g, by_row):
    """The gradient without its component along each row of the weights, or along all of them."""
    w, x = (a.reshape((len(p) if by_row else 1), -1) for a in (p, g))
    part = np.sum(w * x, 1, keepdims=True) / np.sum(w * w, 1, keepdims=True)
    return (x - part * w).reshape(p.shape)


def write(file, method, hyper, *, steps, shapes=SHAPES, said=None):
    """Draws parameters and gradients, perpendicular in two of three steps, and runs the method.

    ``said`` are the hyperparameters that the file names in place of the true ones.
    """
    rng = np.random.default_rng(77)

    def draw(shape):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    arrays = {f"p0/{k}": draw(shape) for k, shape in shapes.items()}
    params = {k: arrays[f"p0/{k}"].astype(np.float64) for k in shapes}
    states = {k: {} for k in params}
    for t in range(steps):
        for k, p in params.items():
            g = draw(p.shape) * (0 if t == 4 and k == "square" else 1)
            if k in ("wide", "conv") and t % 3 != 2:
                g = turned(p, g, True).astype(np.float32)
            if k == "tall" and t % 3 != 1:
                g = turned(p, g, False).astype(np.float32)
            arrays[f"g/{t}/{k}"] = g
            params[k] = METHODS[method](p, g.astype(np.float64), states[k], t + 1, hyper)
            arrays[f"p/{t}/{k}"] = params[k].astype(np.float32)
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


_ADAMP = {
    "lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.3, "delta": 0.15,
    "wd_ratio": 0.4, "nesterov": False,
}  # fmt: skip
_SGDP = {
    "lr": 0.05, "momentum": 0.8, "dampening": 0.0, "weight_decay": 0.1, "nesterov": False,
    "eps": 1e-6, "delta": 0.15, "wd_ratio": 0.4,
}  # fmt: skip
_CONV = {"shapes": {"conv": (6, 5, 3, 2), "wide": (4, 9), "bias": (6,)}}

# name -> (method, hyperparameters, options of write)
VARIANTS = {
    "adamp": ("adamp", _ADAMP, {"steps": 12}),
    "adamp_nesterov": ("adamp", _ADAMP | {"nesterov": True}, {"steps": 9}),
    "adamp_never": ("adamp", _ADAMP | {"delta": 0.0}, {"steps": 4}),
    "adamp_always": ("adamp", _ADAMP | {"delta": 30.0, "wd_ratio": 0.0}, {"steps": 4}),
    # Of the order of gradients and weights: where eps stands shows.
    "adamp_large_eps": ("adamp", _ADAMP | {"eps": 0.2}, {"steps": 6}),
    "adamp_conv": ("adamp", _ADAMP, {"steps": 6} | _CONV),
    "sgdp": ("sgdp", _SGDP, {"steps": 12}),
    "sgdp_nesterov": ("sgdp", _SGDP | {"nesterov": True}, {"steps": 9}),
    "sgdp_dampened": ("sgdp", _SGDP | {"dampening": 0.6}, {"steps": 9}),
    "sgdp_dampened_nesterov": ("sgdp", _SGDP | {"dampening": 0.6, "nesterov": True}, {"steps": 6}),
    "sgdp_whole_buffer": ("sgdp", _SGDP | {"project_buffer": False}, {"steps": 9}),
    "sgdp_without_momentum": ("sgdp", _SGDP | {"momentum": 0.0}, {"steps": 4}),
    "sgdp_conv": ("sgdp", _SGDP, {"steps": 6} | _CONV),
}
