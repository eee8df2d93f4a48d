"""Slow float64 NumPy forms of sparse training, and files of them."""

import json

import numpy as np

SHAPES = {"wide": (6, 8), "tall": (9, 4), "bias": (5,)}


def largest(x, count):
    """The largest magnitudes of a vector, of equal ones the earlier."""
    out = np.zeros(x.size, bool)
    out[np.argsort(-np.abs(x), kind="stable")[:count]] = True
    return out


def cast_adams(params, grads, state, t, h):
    (b1, b2), n, m = h["betas"], h["N"], h["M"]
    new, found, a = {}, {}, t / h["total_steps"]
    for k, p in params.items():
        mu, nu, mask = state.get(k, (0 * p, 0 * p, None))
        mu = b1 * mu + (1 - b1) * grads[k]
        seen = mu
        if p.ndim == 2:
            if t % h["mask_interval"] == 0:
                rows = [[largest(g, n) for g in row.reshape(-1, m)] for row in p]
                mask = np.array(rows).reshape(p.shape)
            found[f"mask/{t}/{k}"] = mask
            seen = np.where(mask, mu, (1 - a) * mu + a * h["l1_decay"] * np.sign(p))
        nu = b2 * nu + (1 - b2) * seen**2
        state[k] = mu, nu, mask
        root = np.sqrt(nu / (1 - b2 ** (t + 1))) + h["eps"]
        new[k] = p - h["lr"] * seen / (1 - b1 ** (t + 1)) / root
    return new, found


def middle(row, beta, gamma):
    first = int(row.size * gamma)
    last = first + int(row.size * beta)
    return np.where(largest(row, last) & ~largest(row, first), row, 0)


def write_breadcrumbs(file, hyper, said=None):
    """Writes task vectors and what is left of them."""
    random, arrays = np.random.default_rng(0), {}
    for k, shape in SHAPES.items():
        p = arrays[f"p0/{k}"] = random.standard_normal(shape).astype(np.float32)
        total = np.zeros(shape)
        for task in range(hyper["num_tasks"]):
            d = arrays[f"delta/{task}/{k}"] = random.standard_normal(shape).astype(np.float32)
            rows = d.reshape(-1, shape[-1])
            kept = [middle(row, hyper["beta"], hyper["gamma"]) for row in rows]
            masked = arrays[f"masked/{task}/{k}"] = np.array(kept).reshape(shape)
            total += np.float64(masked)
        arrays[f"merged/{k}"] = np.float32(p + hyper["alpha"] * total)
    meta = json.dumps({"method": "breadcrumbs", "hyperparameters": said or hyper})
    np.savez(file, meta=meta, **arrays)


METHODS = {"cast_adams": cast_adams}


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


CAST = {
    "lr": 0.03, "betas": [0.8, 0.95], "eps": 1e-6, "l1_decay": 0.1, "N": 1, "M": 4,
    "mask_interval": 3, "total_steps": 20,
}  # fmt: skip

CRUMBS = {"alpha": 0.4, "beta": 0.3, "gamma": 0.25, "num_tasks": 2}

# name -> (method, hyperparameters)
VARIANTS = {
    "cast_adams": ("cast_adams", CAST),
    "cast_adams_1_2": ("cast_adams", CAST | {"M": 2, "total_steps": 10}),
}
WRONG = [
    ("cast_adams", "N", 2),
    ("cast_adams", "mask_interval", 2),
    ("cast_adams", "l1_decay", 0.0),
    ("cast_adams", "total_steps", 15),
]
