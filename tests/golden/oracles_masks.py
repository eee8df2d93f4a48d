"""Slow float64 NumPy forms of LIFT and ID3, and files of them."""

import json

import numpy as np

SHAPES = {"wide": (6, 8), "tall": (9, 4), "bias": (5,)}


def chosen(score, count):
    """The largest of a vector, of equal ones the first."""
    out = np.zeros(score.size, bool)
    out[np.argsort(-score, kind="stable")[:count]] = True
    return out


def low_rank(p, rank):
    u, s, v = np.linalg.svd(p, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def lift(params, grads, state, t, h):
    (b1, b2), lr = h["betas"], h["lr"]
    new, found, n = {}, {}, t + 1
    for k, p in params.items():
        mu, nu, mask = state.get(k, (0 * p, 0 * p, np.ones(p.shape, bool)))
        if p.ndim == 2:
            if t == 0 or (t + 1) % h["update_interval"] == 0:
                score = np.abs(low_rank(p, h["filter_rank"])).reshape(-1)
                score = -score if h.get("smallest") else score
                count = min(sum(p.shape) * h["rank"], p.size)
                mask = chosen(score, count).reshape(p.shape)
                mu, nu = mu * mask, nu * mask
            found[f"mask/{t}/{k}"] = mask
        mu = np.where(mask, b1 * mu + (1 - b1) * grads[k], 0)
        nu = np.where(mask, b2 * nu + (1 - b2) * grads[k] ** 2, 0)
        state[k] = mu, nu, mask
        rate = lr * np.sqrt(1 - b2**n) / (1 - b1**n)
        new[k] = p - np.where(mask, rate * mu / (np.sqrt(nu) + h["eps"]), 0)
        if p.ndim < 2:
            new[k] = new[k] - lr * h.get("weight_decay", 0.0) * p
    return new, found


def id3(params, grads, state, t, h):
    (b1, b2), lr, n = h["betas"], h["lr"], t + 1
    names = list(params)
    flat = lambda tree: np.concatenate([tree[k].reshape(-1) for k in names])  # noqa: E731
    p, g = flat(params), flat(grads)
    mu, nu, mask = state.get("all", (0 * p, 0 * p, np.zeros(p.size, bool)))
    if t < h["max_steps"]:
        score = np.abs(g) / (h["eps_metric"] + np.abs(p)) ** h["exp"]
        number = h["budget"] // h["max_steps"] + (t < h["budget"] % h["max_steps"])
        mask = mask | chosen(np.where(mask, -1, score), number)
    mu, nu = b1 * mu + (1 - b1) * g * mask, b2 * nu + (1 - b2) * (g * mask) ** 2
    state["all"] = mu, nu, mask
    u = mu / (1 - b1**n) / (np.sqrt(nu / (1 - b2**n)) + h["adam_eps"])
    p = p - lr * (u + h.get("weight_decay", 0.0) * p)
    ends = np.cumsum([params[k].size for k in names])[:-1]
    shaped = lambda x: {  # noqa: E731
        k: part.reshape(params[k].shape) for k, part in zip(names, np.split(x, ends), strict=True)
    }
    return shaped(p), {f"mask/{t}/{k}": m for k, m in shaped(mask).items()}


METHODS = {"lift": lift, "id3": id3}


def write(file, method, hyper, *, steps, said=None, seed=0):
    """Writes a trajectory; ``said`` is what the file claims to be its hyperparameters."""
    random, state, arrays = np.random.default_rng(seed), {}, {}
    draw = lambda shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    start = {k: draw(shape) for k, shape in SHAPES.items()}
    params = {k: np.float64(p) for k, p in start.items()}
    arrays.update({f"p0/{k}": p for k, p in start.items()})
    for t in range(steps):
        grads = {k: draw(shape) for k, shape in SHAPES.items()}
        arrays.update({f"g/{t}/{k}": g for k, g in grads.items()})
        wide = {k: np.float64(g) for k, g in grads.items()}
        params, found = METHODS[method](params, wide, state, t, hyper)
        arrays.update(found)
        arrays.update({f"p/{t}/{k}": np.float32(p) for k, p in params.items()})
    meta = json.dumps({"method": method, "hyperparameters": said or hyper, "T": steps})
    np.savez(file, meta=meta, **arrays)


LIFT = {
    "lr": 0.03, "betas": [0.8, 0.95], "eps": 1e-5, "rank": 1, "filter_rank": 3,
    "update_interval": 3,
}  # fmt: skip
ID3 = {
    "lr": 0.02, "betas": [0.85, 0.97], "budget": 47, "exp": 0.8, "eps_metric": 0.01,
    "adam_eps": 1e-7, "max_steps": 12,
}  # fmt: skip

# name -> (method, hyperparameters)
VARIANTS = {
    "lift": ("lift", LIFT),
    "lift_each_step": ("lift", LIFT | {"update_interval": 1}),
    "lift_smallest": ("lift", LIFT | {"smallest": True}),
    "lift_unfiltered": ("lift", LIFT | {"filter_rank": 99, "weight_decay": 0.1}),
    "lift_everything": ("lift", LIFT | {"rank": 50}),
    "id3": ("id3", ID3),
    "id3_gradient": ("id3", ID3 | {"exp": 0.0, "budget": 89, "max_steps": 7}),
    "id3_decay": ("id3", ID3 | {"weight_decay": 0.1}),
}
WRONG = [
    ("lift", "rank", 2),
    ("lift", "filter_rank", 1),
    ("lift", "update_interval", 4),
    ("lift", "smallest", True),
    ("id3", "budget", 41),
    ("id3", "exp", 0.0),
    ("id3", "eps_metric", 1.0),
    ("id3", "max_steps", 6),
]
