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


def by_leaf(rule):
    """A rule of single leaves, told of no others, for the whole tree."""

    def tree(params, grads, noise, states, t, h):
        return {k: rule(p, grads[k], noise[k], states[k], t, h) for k, p in params.items()}

    return tree


@by_leaf
def ewc_online(p, g, noise, state, t, h):
    del noise
    bw, bf = h["beta_weight"], h["beta_fisher"]
    state["w"] = bw * state.get("w", 0 * p) + (1 - bw) * p
    state["f"] = bf * state.get("f", 0 * p) + (1 - bf) * g * g
    away = p - state["w"] / (1 - bw**t)
    return p - h["lr"] * (g + h["lamda"] * state["f"] / (1 - bf**t) * away)


@by_leaf
def classp(p, g, noise, state, t, h):
    del noise, t
    old = state.get("a", 0 * p)
    if h.get("compat") == "paper":
        g = g * (g * g > h["threshold"])
        state["a"] = old + np.abs(g) ** h["power"]
    else:
        if not float((g * g).any()) > h["threshold"]:
            return p
        state["a"] = old + np.abs(g)
    scaling = h["apply_scaling"]
    return p - h["lr"] * g / ((h["epsilon"] + state["a"]) ** (1 / h["power"]) if scaling else 1)


@by_leaf
def langevin(p, g, noise, state, t, h):
    b1, b2 = h["betas"]
    g = g + h["weight_decay"] * p
    state["m"] = b1 * state.get("m", 0 * p) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0 * p) + (1 - b2) * g * g
    root, c1, c2 = np.sqrt(state["v"]), 1 - b1**t, 1 - b2**t
    stir = h["noise_scale"] * np.sqrt(2 * h["lr"]) * noise
    if "a" in h:
        return p - h["lr"] * (g + h["a"] * state["m"] / (root + h["eps"])) + stir
    step = state["m"] / c1 / (root / np.sqrt(c2) + h["eps"])
    return p - h["lr"] * step + stir * np.sqrt(np.sqrt(c2) / c1 / (root + h["eps"]))


@by_leaf
def xgrad(p, g, noise, state, t, h):
    """Keeps the point of prediction in the state; the maximum of amsgrad is not in it."""
    del noise
    b1, b2 = h["betas"]
    m, v = state.get("m", 0 * p), state.get("v", 0 * p)
    c1, c2 = 1 - b1 ** (t - 1), 1 - b2 ** (t - 1)
    ahead = m / c1 / (np.sqrt(v / c2) + h["eps"]) if t > 1 else 0 * p
    state["pred"] = p - h["s"] * h["lr"] * ahead
    m = state["m"] = b1 * m + (1 - b1) * g
    v = state["v"] = b2 * v + (1 - b2) * g * g
    state["top"] = np.maximum(state.get("top", v), v)
    root = np.sqrt((state["top"] if h.get("amsgrad") else v) / (1 - b2**t))
    decay = h["weight_decay"] if h["decays"] else 0.0
    return (1 - h["lr"] * decay) * p - h["lr"] * m / (1 - b1**t) / (root + h["eps"])


METHODS = {
    "xgrad_adam": xgrad,
    "xgrad_adamw": xgrad,
    "upgd": upgd,
    "upgd_local": upgd,
    "upgd_adam": upgd,
    "ewc_online": ewc_online,
    "classp": classp,
    "langevin_adam": langevin,
    "adam_sgld": langevin,
}


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
        ahead = {k: state["pred"] for k, state in states.items() if "pred" in state}
        for name, tree in (("g", grads), ("noise", noise), ("p", params), ("pred", ahead)):
            arrays |= {f"{name}/{t}/{k}": np.float32(x) for k, x in tree.items()}
    arrays |= {f"p0/{k}": x for k, x in start.items()}
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


_UPGD = {"lr": 0.05, "weight_decay": 0.1, "beta_utility": 0.9, "sigma": 0.3}
_ADAM = _UPGD | {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
_XGRAD = {"lr": 0.03, "betas": [0.8, 0.9], "eps": 1e-3, "weight_decay": 0.3, "s": 2.5}
_EWC = {"lr": 0.1, "lamda": 3.0, "beta_weight": 0.8, "beta_fisher": 0.9}
_CLASSP = {"lr": 0.05, "threshold": 0.5, "epsilon": 1e-2, "power": 2, "apply_scaling": True}
_PAPER = _CLASSP | {"compat": "paper", "threshold": 0.04}
_LANGEVIN = {"lr": 0.03, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.2, "noise_scale": 0.3}
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
    "xgrad_adam": ("xgrad_adam", _XGRAD | {"decays": False}, {"steps": 8}),
    "xgrad_adamw": ("xgrad_adamw", _XGRAD | {"decays": True}, {"steps": 8} | _CONV),
    "xgrad_amsgrad": ("xgrad_adamw", _XGRAD | {"decays": True, "amsgrad": True}, {"steps": 8}),
    "ewc_online": ("ewc_online", _EWC, {"steps": 12}),
    "ewc_online_forgetful": ("ewc_online", _EWC | {"beta_fisher": 0.0}, {"steps": 5} | _CONV),
    "classp": ("classp", _CLASSP, {"steps": 8}),
    "classp_unscaled": ("classp", _CLASSP | {"apply_scaling": False}, {"steps": 4} | _CONV),
    "classp_closed": ("classp", _CLASSP | {"threshold": 1.0}, {"steps": 2}),
    "classp_paper": ("classp", _PAPER, {"steps": 8}),
    "classp_paper_cube": ("classp", _PAPER | {"power": 3, "threshold": 0}, {"steps": 5}),
    "langevin_adam": ("langevin_adam", _LANGEVIN, {"steps": 12}),
    "langevin_adam_cold": ("langevin_adam", _LANGEVIN | {"noise_scale": 0.0}, {"steps": 3}),
    "adam_sgld": ("adam_sgld", _LANGEVIN | {"a": 0.4}, {"steps": 12}),
}
