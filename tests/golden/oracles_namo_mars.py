"""Slow float64 NumPy forms of NAMO and MARS, and files of other hyperparameters made with them."""

import json

import numpy as np

from tests.golden.oracles import JORDAN, SHAPES, adam, decayed, newton_schulz


def polar(x):
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def backup_adamw(p, g, state, t, h):
    held = state.get("adam", (0 * p, 0 * p))
    state["adam"], u = adam(held, g, *h["adamw_betas"], h["adamw_eps"], t, corrected=False)
    decay = h["wd"] if h.get("adamw_wd") is None else h["adamw_wd"]
    return decayed(p, u, h["lr"], h["lr"], decay)


def namo(p, g, state, t, h):
    if p.ndim < 2:
        return backup_adamw(p, g, state, t, h)
    flat = g.reshape(len(g), -1)
    beta, mu2 = h["momentum"], h["mu2"]
    m = state["m"] = beta * state.get("m", 0 * flat) + (1 - beta) * flat
    u = (1 - beta) * flat + beta * m if h["nesterov"] else m
    out = polar(u) if h["use_exact_svd"] else newton_schulz(u, JORDAN[:1] * h["ns_steps"])
    base = h["lr"] * np.sqrt(1 - mu2**t) / (1 - beta**t + 1e-12)
    axis = 0 if "col_state_clamp_c" in h else None
    square = np.sum(flat * flat, axis)
    v = state["v"] = mu2 * state.get("v", 0 * square) + (1 - mu2) * square
    ratio = np.sqrt(np.sum(u * u, axis)) / (np.sqrt(v) + h["adamnorm_eps"])
    c = h.get("col_state_clamp_c", 0.0)
    if 0 < c <= 1:
        ratio = np.clip(ratio, c * ratio.mean(), ratio.mean() / c)
    kept = 1 - h["wd"] * np.minimum(base * ratio, 1)
    kept = np.maximum(kept, 0) if axis == 0 else kept
    length = np.minimum(base * h["scale_coeff"] * np.sqrt(max(p.shape[:2])) * ratio, 1)
    return (p.reshape(flat.shape) * kept - length * out).reshape(p.shape)


def reduced(g, state, h, b1, clip=True):
    last = state.get("last", 0 * g) if "gprev" not in state else state["gprev"]
    c = g + h["gamma"] * b1 / (1 - b1) * (g - last)
    state["last"] = g
    return c / max(1.0, np.linalg.norm(c)) if clip else c


def mars_m(p, g, state, t, h):
    if p.ndim != 2:
        return backup_adamw(p, g, state, t, h)
    mu = h["momentum"]
    c = reduced(g, state, h, mu)
    state["m"] = mu * state.get("m", 0 * p) + (1 - mu) * c
    out = newton_schulz(state["m"], JORDAN[:1] * h["ns_steps"])
    return decayed(p, out, h["lr"] * 0.2 * np.sqrt(max(p.shape)), h["lr"], h["wd"])


def mars_m_efficient(p, g, state, t, h):
    """The one-buffer form as its authors write it."""
    if p.ndim != 2:
        return backup_adamw(p, g, state, t, h)
    mu, gamma = h["momentum"], h["gamma"]
    held = state["b"] = mu * state.get("b", 0 * p) + (1 - gamma) * (1 - mu) / mu * g
    out = newton_schulz(gamma * g + mu * held, JORDAN[:1] * h["ns_steps"])
    return decayed(p, out, h["lr"] * 0.2 * np.sqrt(max(p.shape)), h["lr"], h["wd"])


def mars_shampoo(p, g, state, t, h):
    b1, b2 = h["betas"]
    if p.ndim != 2:
        held = state.get("adam", (0 * p, 0 * p))
        if h["optimize_1d"]:
            c = reduced(g, state, h, b1)
            state["adam"], u = adam(held, c, b1, b2, h["eps"], t)
            return decayed(p, u, h["lr"], h["lr"], h["weight_decay"])
        state["adam"], u = adam(held, g, *h["betas_1d"], h["eps"], t)
        return decayed(p, u, h["lr_1d"], h["lr_1d"], h["weight_decay_1d"])
    state["m"] = b1 * state.get("m", 0 * p) + (1 - b1) * reduced(g, state, h, b1)
    out = newton_schulz(state["m"] / (1 - b1), JORDAN, h["eps"])
    out = out * np.sqrt(max(1.0, p.shape[0] / p.shape[1]))
    return decayed(p, out, h["lr"], h["lr"], h["weight_decay"])


METHODS = {
    "namo": namo,
    "namo_d": namo,
    "mars_m": mars_m,
    "mars_m_efficient": mars_m_efficient,
    "mars_shampoo": mars_shampoo,
}


def write(file, method, hyper, *, steps, shapes=SHAPES, exact=False, size=0.1, said=None):
    """Draws parameters and gradients (one all zero), runs the method, stores the trajectory.

    ``said`` are the hyperparameters that the file names in place of the true ones.
    """
    rng = np.random.default_rng(99)

    def draw(shape):
        return (size * rng.standard_normal(shape)).astype(np.float32)

    arrays = {f"p0/{k}": draw(shape) for k, shape in shapes.items()}
    params = {k: arrays[f"p0/{k}"].astype(np.float64) for k in shapes}
    states = {k: {} for k in params}
    for t in range(steps):
        for k, p in params.items():
            g = draw(p.shape) * (0 if t == 4 and k == "square" else 1)
            arrays[f"g/{t}/{k}"] = g
            if exact:
                last = draw(p.shape) * (t > 0)
                arrays[f"gprev/{t}/{k}"] = last
                states[k]["gprev"] = last.astype(np.float64)
            params[k] = METHODS[method](p, g.astype(np.float64), states[k], t + 1, hyper)
            arrays[f"p/{t}/{k}"] = params[k].astype(np.float32)
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


_NAMO = {
    "lr": 0.03, "wd": 0.3, "momentum": 0.8, "mu2": 0.9, "adamnorm_eps": 1e-3, "nesterov": False,
    "ns_steps": 4, "use_exact_svd": False, "scale_coeff": 0.3, "adamw_betas": [0.7, 0.9],
    "adamw_eps": 1e-6,
}  # fmt: skip
_CAPPED = _NAMO | {"lr": 2.0, "wd": 1.5, "adamw_wd": 0.0}
_MARS_M = {
    "lr": 0.02, "wd": 0.2, "momentum": 0.8, "ns_steps": 4, "adamw_betas": [0.7, 0.9],
    "adamw_eps": 1e-6, "gamma": 0.2,
}  # fmt: skip
_SHAMPOO = {
    "lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.2, "gamma": 0.1,
    "optimize_1d": False, "lr_1d": 0.005, "betas_1d": [0.85, 0.9], "weight_decay_1d": 0.3,
}  # fmt: skip
_CONV = {"shapes": {"conv": (6, 5, 3, 2), "wide": (4, 9), "bias": (6,)}}

# name -> (method, hyperparameters, options of write)
VARIANTS = {
    "namo": ("namo", _NAMO, {"steps": 12}),
    "namo_nesterov_svd": ("namo", _NAMO | {"nesterov": True, "use_exact_svd": True}, {"steps": 6}),
    "namo_adamw_wd": ("namo", _NAMO | {"adamw_wd": 0.0}, {"steps": 4}),
    "namo_conv": ("namo", _NAMO, {"steps": 4} | _CONV),
    # So long that the spectral norm of the step meets its bound.
    "namo_capped": ("namo", _CAPPED | {"wd": 0.5}, {"steps": 5}),
    "namo_d": ("namo_d", _NAMO | {"col_state_clamp_c": 0.4}, {"steps": 12}),
    "namo_d_free": ("namo_d", _NAMO | {"col_state_clamp_c": 0.0}, {"steps": 6}),
    "namo_d_off": ("namo_d", _NAMO | {"col_state_clamp_c": 1.5, "nesterov": True}, {"steps": 6}),
    "namo_d_conv": ("namo_d", _NAMO | {"col_state_clamp_c": 0.9}, {"steps": 4} | _CONV),
    "namo_d_capped": ("namo_d", _CAPPED | {"col_state_clamp_c": 0.1}, {"steps": 5}),
    "mars_m": ("mars_m", _MARS_M, {"steps": 12}),
    "mars_m_unclipped": ("mars_m", _MARS_M, {"steps": 6, "size": 0.01}),
    "mars_m_exact": ("mars_m", _MARS_M, {"steps": 6, "exact": True}),
    "mars_m_efficient": ("mars_m_efficient", _MARS_M, {"steps": 12}),
    "mars_shampoo": ("mars_shampoo", _SHAMPOO, {"steps": 12}),
    "mars_shampoo_1d": ("mars_shampoo", _SHAMPOO | {"optimize_1d": True}, {"steps": 12} | _CONV),
    "mars_shampoo_exact": ("mars_shampoo", _SHAMPOO | {"optimize_1d": True},
                           {"steps": 6, "exact": True}),
}  # fmt: skip
