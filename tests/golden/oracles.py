"""Slow float64 NumPy forms of the methods, written from the papers, that write golden files."""

import json

import numpy as np

SHAPES = {"wide": (8, 12), "tall": (12, 8), "square": (8, 8), "bias": (12,)}
JORDAN = [(3.4445, -4.7750, 2.0315)] * 5
YOU = [
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
]
POLAR_1P02 = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def newton_schulz(x, rows, eps=1e-7, margin=1.0):
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, rows, eps, margin).T
    x = x / (margin * np.linalg.norm(x) + eps)
    for a, b, c in rows:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def momentum(m, g, beta, nesterov, ema):
    fresh = 1 - beta if ema else 1.0
    m = beta * m + fresh * g
    return m, fresh * g + beta * m if nesterov else m


def adam(state, g, b1, b2, eps, t, corrected=True):
    m, v = state
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    c1, c2 = 1 - b1**t, 1 - b2**t
    if corrected:
        return (m, v), m / c1 / (np.sqrt(v / c2) + eps)
    return (m, v), m * np.sqrt(c2) / c1 / (np.sqrt(v) + eps)


def agree(u, g):
    k = (u * g > 0).astype(float)
    return k / max(k.mean(), 1e-3)


def decayed(p, u, rate, lr, decay, cautious=False):
    """p after a step of u at rate; decay uses lr alone."""
    on = (u * p >= 0) if cautious else 1.0
    return p - lr * decay * on * p - rate * u


def muon(p, g, state, t, h):
    if p.ndim < 2:
        state["adam"], u = adam(
            state.get("adam", (0 * p, 0 * p)), g, *h["adam_betas"], h["adam_eps"], t
        )
        return decayed(p, u, h["adam_lr"], h["adam_lr"], h["adam_weight_decay"])
    state["m"], u = momentum(state.get("m", 0 * p), g, h["momentum"], h["nesterov"], True)
    out = newton_schulz(u, JORDAN[: h["ns_steps"]], h["ns_eps"])
    out = out * np.sqrt(max(1.0, p.shape[0] / p.shape[1]))
    return decayed(p, out, h["lr"], h["lr"], h["weight_decay"])


def muon_rms(p, g, state, t, h):
    if p.ndim < 2:
        held = state.get("adam", (0 * p, 0 * p))
        state["adam"], u = adam(held, g, *h["adamw_betas"], h["adamw_eps"], t, corrected=False)
        return decayed(p, u, h["lr"], h["lr"], h["wd"])
    state["m"], u = momentum(state.get("m", 0 * p), g, h["momentum"], h["nesterov"], False)
    out = newton_schulz(u, JORDAN[: h["ns_steps"]])
    return decayed(p, out, h["lr"] * 0.2 * np.sqrt(max(p.shape)), h["lr"], h["wd"])


def muon_dion(p, g, state, t, h):
    if p.ndim < 2:
        held = state.get("adam", (0 * p, 0 * p))
        state["adam"], u = adam(held, g, *h["betas"], h["epsilon"], t)
        return decayed(p, u, h["lr"], h["lr"], h["weight_decay"], h["cautious_wd"])
    state["m"], u = momentum(state.get("m", 0 * p), g, h["mu"], h["nesterov"], False)
    if h["use_polar_express"]:
        out = newton_schulz(u, POLAR_1P02, h["epsilon"], 1.02)
    else:
        out = newton_schulz(u, YOU, h["epsilon"])
    rows, cols = p.shape
    scale = {
        "spectral_norm": np.sqrt(rows / cols),
        "rms_norm": 0.2 * np.sqrt(max(rows, cols)),
        None: 1.0,
    }[h["adjust_lr"]]
    return decayed(p, out, h["lr"] * scale, h["lr"], h["weight_decay"], h["cautious_wd"])


def cautious_muon(p, g, state, t, h):
    if p.ndim < 2:
        held = state.get("adam", (0 * p, 0 * p))
        state["adam"], u = adam(held, g, *h["adam_betas"], h["adam_eps"], t)
        decay = h.get("adam_weight_decay", h["weight_decay"])
        return decayed(p, u * agree(u, g), h["adam_lr"], h["adam_lr"], decay)
    state["m"], u = momentum(state.get("m", 0 * p), g, h["momentum"], h["nesterov"], True)
    out = newton_schulz(u * agree(state["m"], g), JORDAN[: h["ns_steps"]])
    out = out * np.sqrt(max(1.0, p.shape[0] / p.shape[1]))
    return decayed(p, out, h["lr"], h["lr"], h["weight_decay"])


def adam_kind(p, g, state, t, h, *, corrected, shape, cautious):
    held = state.get("adam", (0 * p, 0 * p))
    state["adam"], u = adam(held, g, *h["betas"], h["eps"], t, corrected=corrected)
    return decayed(p, shape(u, g), h["lr"], h["lr"], h["weight_decay"], cautious)


def lion_kind(p, g, state, t, h, *, scale, cautious):
    b1, b2 = h["betas"]
    m = state.get("m", 0 * p)
    u = np.sign(b1 * m + (1 - b1) * g)
    state["m"] = b2 * m + (1 - b2) * g
    return decayed(p, u * scale(u, g), h["lr"], h["lr"], h["weight_decay"], cautious)


def count_scale(u, g):
    k = (u * g > 0).astype(float)
    return k * k.size / (k.sum() + 1)


ADAM_KINDS = {
    "cautious_adamw": {
        "corrected": False,
        "shape": lambda u, g: u * agree(u, g),
        "cautious": False,
    },
    "grams": {
        "corrected": False,
        "shape": lambda u, g: np.sign(g) * np.abs(u),
        "cautious": False,
    },
    "cwd_adamw": {"corrected": True, "shape": lambda u, g: u, "cautious": True},
}
LION_KINDS = {
    "lion": {"scale": lambda u, g: 1.0, "cautious": False},
    "cautious_lion": {"scale": count_scale, "cautious": False},
    "cwd_lion": {"scale": lambda u, g: 1.0, "cautious": True},
}
MATRIX = {
    "muon": muon,
    "muon_no_nesterov": muon,
    "muon_rms": muon_rms,
    "muon_dion": muon_dion,
    "cautious_muon": cautious_muon,
}


def update(method, p, g, state, t, h):
    if method in ADAM_KINDS:
        return adam_kind(p, g, state, t, h, **ADAM_KINDS[method])
    if method in LION_KINDS:
        return lion_kind(p, g, state, t, h, **LION_KINDS[method])
    return MATRIX[method](p, g, state, t, h)


def write(file, method, hyper, *, steps, seed):
    """Draws parameters and gradients (one all zero), runs the method, stores the trajectory."""
    rng = np.random.default_rng(seed)
    params = {k: 0.1 * rng.standard_normal(shape) for k, shape in SHAPES.items()}
    arrays = {f"p0/{k}": p.astype(np.float32) for k, p in params.items()}
    params = {k: arrays[f"p0/{k}"].astype(np.float64) for k in params}
    states = {k: {} for k in params}
    for t in range(steps):
        for k, p in params.items():
            g = (0.1 * rng.standard_normal(p.shape)).astype(np.float32)
            g = 0 * g if t == 4 and k == "square" else g
            arrays[f"g/{t}/{k}"] = g
            params[k] = update(method, p, g.astype(np.float64), states[k], t + 1, hyper)
            arrays[f"p/{t}/{k}"] = params[k].astype(np.float32)
    meta = json.dumps({"method": method, "hyperparameters": hyper})
    np.savez(file, meta=meta, **arrays)


_MUON = {
    "lr": 0.05, "momentum": 0.9, "weight_decay": 0.2, "nesterov": True, "ns_steps": 4,
    "ns_eps": 1e-7, "adam_lr": 0.003, "adam_betas": [0.8, 0.9], "adam_eps": 1e-8,
    "adam_weight_decay": 0.3,
}  # fmt: skip
_DION = {
    "lr": 0.03, "mu": 0.9, "betas": [0.85, 0.97], "weight_decay": 0.2, "cautious_wd": True,
    "epsilon": 1e-6, "nesterov": True, "adjust_lr": "rms_norm", "use_polar_express": False,
}  # fmt: skip
_ADAM = {"lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-5, "weight_decay": 0.3}
_LION = {"lr": 0.005, "betas": [0.8, 0.95], "weight_decay": 0.4}
_RMS = {
    "lr": 0.01, "wd": 0.3, "momentum": 0.8, "nesterov": False, "ns_steps": 3,
    "adamw_betas": [0.7, 0.9], "adamw_eps": 1e-6,
}  # fmt: skip

# name -> (method, hyperparameters, steps): other values and flags than the stored files have.
VARIANTS = {
    "muon": ("muon", _MUON, 12),
    "muon_plain_momentum": ("muon_no_nesterov", _MUON | {"nesterov": False}, 7),
    "muon_rms": ("muon_rms", _RMS, 12),
    "muon_dion_rms_cautious": ("muon_dion", _DION, 12),
    "muon_dion_unscaled": ("muon_dion", _DION | {"adjust_lr": None, "nesterov": False}, 6),
    "cautious_muon": ("cautious_muon", _MUON | {"nesterov": False}, 12),
    **{name: (name, _ADAM, 12) for name in ADAM_KINDS},
    **{name: (name, _LION, 12) for name in LION_KINDS},
}
