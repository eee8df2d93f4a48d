"""Slow float64 NumPy forms of the methods for streams of tasks, and files made with them."""

import json

import numpy as np

from tests.golden.oracles import SHAPES, adam


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def upgd(params, grads, noise, states, t, h):
    """Global profiles look at all leaves, so the whole tree is stepped at once."""
    profile, beta = h["profile"], h["beta_utility"]
    for k, p in params.items():
        states[k]["u"] = beta * states[k].get("u", 0 * p) - (1 - beta) * grads[k] * p
    correction = 1 - beta**t
    raw = max(s["u"].max() for s in states.values())
    magnitude = max(np.abs(s["u"]).max() for s in states.values())
    out = {}
    for k, p in params.items():
        scaled = states[k]["u"] / correction
        if profile.endswith("local"):
            row = np.sqrt((scaled**2).sum(-1, keepdims=True))
            ratio = scaled / np.maximum(row, 1e-12)
        else:
            ratio = scaled / {"paper_global": raw / correction, "safe": magnitude / correction}.get(
                profile, raw
            )
        w = 1 - sigmoid(ratio)
        step = grads[k]
        if "beta1" in h:
            held = states[k].get("adam", (0 * p, 0 * p))
            states[k]["adam"], step = adam(held, step, h["beta1"], h["beta2"], h["eps"], t)
        z = h["sigma"] * noise[k]
        step = step + z * w if profile.startswith("nonprotecting") else (step + z) * w
        factor = 2 if profile == "readme_global" else 1
        out[k] = (1 - h["lr"] * h["weight_decay"]) * p - factor * h["lr"] * step
    return out


METHODS = {"upgd": upgd, "upgd_local": upgd, "upgd_adam": upgd}


def write(file, method, hyper, *, steps, shapes=SHAPES, said=None):
    """Draws parameters, gradients (one all zero) and noise, runs the method, stores the run.

    ``said`` are the hyperparameters that the file names in place of the true ones.
    """
    rng = np.random.default_rng(7)

    def draw(size):
        return {k: (size * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}

    def wide(tree):
        return {k: x.astype(np.float64) for k, x in tree.items()}

    arrays, start = {}, draw(0.5)
    params, states = wide(start), {k: {} for k in shapes}
    for t in range(steps):
        grads, noise = draw(0.5), draw(1.0)
        if t == 4 and "square" in grads:
            grads["square"] *= 0
        params = METHODS[method](params, wide(grads), wide(noise), states, t + 1, hyper)
        for name, tree in (("g", grads), ("noise", noise), ("p", params)):
            arrays |= {f"{name}/{t}/{k}": np.float32(x) for k, x in tree.items()}
    arrays |= {f"p0/{k}": x for k, x in start.items()}
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


_UPGD = {"lr": 0.05, "weight_decay": 0.1, "beta_utility": 0.9, "sigma": 0.3}
_ADAM = _UPGD | {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
_CONV = {"shapes": {"conv": (4, 3, 2, 3), "gain": (5,)}}

# name -> (method, hyperparameters, options of write)
VARIANTS = {
    "upgd": ("upgd", _UPGD | {"profile": "readme_global"}, {"steps": 12}),
    "upgd_undecayed": (
        "upgd",
        _UPGD | {"profile": "paper_global", "beta_utility": 0.0, "weight_decay": 0.0},
        {"steps": 4} | _CONV,
    ),
    "upgd_experiment": ("upgd", _UPGD | {"profile": "experiment_global"}, {"steps": 6}),
    "upgd_safe": ("upgd", _UPGD | {"profile": "safe"}, {"steps": 6}),
    "upgd_nonprotecting": ("upgd", _UPGD | {"profile": "nonprotecting_global"}, {"steps": 6}),
    "upgd_local": ("upgd_local", _UPGD | {"profile": "experiment_local"}, {"steps": 8} | _CONV),
    "upgd_local_noise": (
        "upgd_local",
        _UPGD | {"profile": "nonprotecting_local"},
        {"steps": 4},
    ),
    "upgd_adam": ("upgd_adam", _ADAM | {"profile": "readme_global"}, {"steps": 12}),
}
