"""Slow float64 NumPy forms of element-wise MARS, AMSGrad and adaptive memory, and their files."""

import json

import numpy as np

from tests.golden.oracles import SHAPES, decayed
from tests.golden.oracles_namo_mars import mars_shampoo as shampoo_of_matrices
from tests.golden.oracles_namo_mars import reduced

CONV = {"conv": (6, 5, 3, 2), "stack": (3, 4, 5), "wide": (4, 9), "bias": (6,)}


def adam(state, g, b1, b2, eps, t, amsgrad):
    m, v, most = state.get("adam", (0 * g,) * 3)
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    most = np.maximum(most, v)
    state["adam"] = m, v, most
    root = np.sqrt(most if amsgrad else v) / np.sqrt(1 - b2**t) + eps
    return m / (1 - b1**t) / root


def mars(p, g, state, t, h, method):
    (b1, b2), most = h["betas"], h.get("amsgrad", False)
    if method == "mars_shampoo" and p.ndim == 2:
        return shampoo_of_matrices(p, g, state, t, h)
    if p.ndim != 2 and not h["optimize_1d"]:
        u = adam(state, g, *h["betas_1d"], h["eps"], t, most)
        return decayed(p, u, h["lr_1d"], h["lr_1d"], h["weight_decay_1d"])
    c = reduced(g, state, h, b1)
    if method == "mars_lion":
        state["m"] = b1 * state.get("m", 0 * p) + (1 - b1) * c
        u = np.sign(state["m"])
    else:
        u = adam(state, c, b1, b2, h["eps"], t, most)
    return decayed(p, u, h["lr"], h["lr"], h["weight_decay"])


def amsgrad(p, g, state, t, h):
    g = -g if h.get("maximize", False) else g
    apart = h.get("decoupled_weight_decay", False)
    g = g if apart else g + h["weight_decay"] * p
    u = adam(state, g, *h["betas"], h["eps"], t, h.get("amsgrad", True))
    return decayed(p, u, h["lr"], h["lr"], h["weight_decay"] if apart else 0.0)


def rate(h, t):
    return h["lr"][t - 1] if isinstance(h["lr"], list) else h["lr"]


def am_msgd(params, grads, state, t, h):
    """As published: the numerator (1+lam)<g,d> - <d-g, g+lam*d>, over all leaves as one vector."""
    lam = h["model_lambda"]
    grads = {k: g + h["weight_decay"] * params[k] * (g.ndim > 1) for k, g in grads.items()}
    g = np.concatenate([x.ravel() for x in grads.values()])
    d = state.get("d", g)
    over, under = (1 + lam) * g @ d - (d - g) @ (g + lam * d), (d - g) @ (d - g)
    beta = np.clip(over / under, 0, h["beta_max"]) if under > 0 else 0.0
    d = state["d"] = (beta + lam) / (1 + lam) * d + (1 - beta) / (1 + lam) * g
    out, start = {}, 0
    for k, p in params.items():
        out[k] = p - rate(h, t) * d[start : start + p.size].reshape(p.shape)
        start += p.size
    return out, {f"beta/{t - 1}": beta}


def am_adamw(params, grads, state, t, h):
    out, betas, lr = {}, {}, rate(h, t)
    (b1, b2), lam = h["betas"], h["model_lambda"]
    for k, p in params.items():
        g, wd = grads[k], h["weight_decay"] * (p.ndim > 1)
        d, v, kept = state.get(k, (0 * p, 0 * p, 1.0))
        v = b2 * v + (1 - b2) * g * g
        metric = (1 - b1 * kept) * (np.sqrt(v / (1 - b2**t)) + h["eps"])
        w, e, beta = 1 / (metric * (1 + lam * metric)), d - g, b1
        if t > 1:
            gap = rate(h, t - 1) * np.sum(g * (d / metric + wd * p)) if lr > 0 else 0.0
            over = (1 + wd * lr) * gap / lr if lr > 0 else 0.0
            over = over - np.sum(e * w * (g + lam * metric * d)) - wd * np.sum(p * e)
            under = np.sum(e * w * e)
            beta = float(np.clip(over / under, 0, b1)) if under > 0 else 0.0
        d = ((1 - beta) * g + (lam * metric + beta) * d) / (1 + lam * metric)
        state[k] = d, v, kept * beta
        out[k], betas[f"beta/{t - 1}/{k}"] = decayed(p, d / metric, lr, lr, wd), beta
    return out, betas


LEAFWISE = {
    **{
        name: lambda p, g, state, t, h, name=name: mars(p, g, state, t, h, name)
        for name in ("mars_adamw", "mars_lion", "mars_shampoo")
    },
    "amsgrad": amsgrad,
}
WHOLE = {"am_msgd": am_msgd, "am_adamw": am_adamw}
SIZES = (1.0, 1.0, 0.3, 0.1, 1.0, 0.5, 0.05, 1.0, 0.2, 0.7)


def write(file, method, hyper, *, steps, shapes=SHAPES, exact=False, sizes=(1.0,), said=None):
    """Draws parameters and gradients, runs the method, stores the trajectory.

    Gradients are as long as ``sizes``, cycled, say. ``said`` are the hyperparameters that the file
    names in place of the true ones.
    """
    rng = np.random.default_rng(7)

    def draw(shape):
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    arrays = {f"p0/{k}": draw(shape) for k, shape in shapes.items()}
    params = {k: arrays[f"p0/{k}"].astype(np.float64) for k in shapes}
    states, whole = {k: {} for k in params}, {}
    for t in range(steps):
        drawn = {k: draw(p.shape) * np.float32(sizes[t % len(sizes)]) for k, p in params.items()}
        grads = {k: np.float64(g) for k, g in drawn.items()}
        arrays.update({f"g/{t}/{k}": g for k, g in drawn.items()})
        if exact:
            for k, p in params.items():
                arrays[f"gprev/{t}/{k}"] = last = draw(p.shape) * (t > 0)
                states[k]["gprev"] = np.float64(last)
        if method in WHOLE:
            params, found = WHOLE[method](params, grads, whole, t + 1, hyper)
            arrays.update({k: np.float32(x) for k, x in found.items()})
        else:
            params = {
                k: LEAFWISE[method](p, grads[k], states[k], t + 1, hyper) for k, p in params.items()
            }
        arrays.update({f"p/{t}/{k}": np.float32(p) for k, p in params.items()})
    meta = json.dumps({"method": method, "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


MARS = {
    "lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.2, "gamma": 0.1,
    "optimize_1d": False, "lr_1d": 0.005, "betas_1d": [0.85, 0.9], "weight_decay_1d": 0.3,
}  # fmt: skip
_ALL = MARS | {"optimize_1d": True}
AMSGRAD = {"lr": 0.02, "betas": [0.8, 0.9], "eps": 1e-5, "weight_decay": 0.3}
AM = {"lr": 0.05, "beta_max": 0.8, "model_lambda": 0.4, "weight_decay": 0.3}
AM_ADAMW = {
    "lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-5, "weight_decay": 0.3, "model_lambda": 2.0,
}  # fmt: skip
_RATES = [0.01 * (1 + i % 4) * (i != 5) for i in range(12)]
_MANY = {"steps": 12}
_CONV = {"steps": 6, "shapes": CONV}
# Single gradients of tenfold size, which the maximum remembers.
_SPIKES = {"steps": 12, "sizes": (1.0, 1.0, 10.0, 1.0, 1.0, 1.0)}
_SIZED = {"steps": 12, "sizes": SIZES}

# name -> (method, hyperparameters, options of write)
VARIANTS = {
    "mars_adamw": ("mars_adamw", MARS, _MANY),
    "mars_adamw_all": ("mars_adamw", _ALL, _CONV),
    "mars_adamw_amsgrad": ("mars_adamw", MARS | {"amsgrad": True}, _SPIKES),
    "mars_adamw_amsgrad_all": ("mars_adamw", _ALL | {"amsgrad": True}, _CONV | _SPIKES),
    "mars_adamw_exact": ("mars_adamw", _ALL, {"steps": 6, "exact": True}),
    "mars_lion": ("mars_lion", MARS, _MANY),
    "mars_lion_all": ("mars_lion", _ALL, _CONV),
    "mars_lion_amsgrad": ("mars_lion", MARS | {"amsgrad": True}, _SPIKES),
    "mars_lion_exact": ("mars_lion", MARS, {"steps": 6, "exact": True}),
    "mars_shampoo_amsgrad": ("mars_shampoo", MARS | {"amsgrad": True}, _SPIKES),
    "mars_shampoo_amsgrad_all": ("mars_shampoo", _ALL | {"amsgrad": True}, _SPIKES),
    "amsgrad": ("amsgrad", AMSGRAD, _SPIKES),
    "amsgrad_decoupled": ("amsgrad", AMSGRAD | {"decoupled_weight_decay": True}, _SPIKES),
    "amsgrad_maximize": ("amsgrad", AMSGRAD | {"maximize": True}, {"steps": 4}),
    "amsgrad_off": ("amsgrad", AMSGRAD | {"amsgrad": False}, _SPIKES),
    "am_msgd": ("am_msgd", AM, _SIZED),
    "am_msgd_free": ("am_msgd", AM | {"model_lambda": 0.0, "lr": _RATES}, _SIZED),
    "am_adamw": ("am_adamw", AM_ADAMW, _SIZED),
    "am_adamw_free": ("am_adamw", AM_ADAMW | {"model_lambda": 0.0, "weight_decay": 0.0}, _SIZED),
    "am_adamw_scheduled": ("am_adamw", AM_ADAMW | {"lr": _RATES}, _SIZED),
}
