"""Slow NumPy forms of the compressed averages, in float64: files with other settings."""

from typing import Any

import numpy as np

SHAPES = {"wide": (8, 12), "tall": (12, 8), "square": (8, 8), "bias": (12,)}
Arrays = dict[str, np.ndarray]
Leaves = dict[str, np.ndarray]


def inputs(seed: int, steps: int, workers: list[str]) -> tuple[Arrays, Leaves, list]:
    """Recorded start and gradients; ``grads[t][w]`` are trees."""
    random = np.random.default_rng(seed)
    draw = lambda scale: {  # noqa: E731
        k: np.float32(scale * random.standard_normal(s)) for k, s in SHAPES.items()
    }
    params = draw(0.5)
    grads = [[draw(0.1) for _ in workers] for _ in range(steps)]
    arrays = {f"p0/{k}": v for k, v in params.items()}
    for t, step in enumerate(grads):
        for name, tree in zip(workers, step, strict=True):
            arrays |= {f"g/{t}/{name}/{k}": v for k, v in tree.items()}
    return arrays, {k: np.float64(v) for k, v in params.items()}, grads


def _orth(x: np.ndarray, eps: float = 0.0) -> np.ndarray:
    if not eps:
        return np.linalg.qr(x)[0]
    out = np.array(x)
    for i in range(x.shape[1]):
        out[:, i] /= np.linalg.norm(out[:, i]) + eps
        for j in range(i + 1, x.shape[1]):
            out[:, j] -= (out[:, i] @ out[:, j]) * out[:, i]
    return out


def _torch(hyper: dict, ms: list, factors: dict, count: int) -> tuple[np.ndarray, list]:
    del count
    eps = hyper.get("orth_eps", 0.0)
    q = _orth(factors["q"], eps)
    p = _orth(sum(m @ q for m in ms), eps)
    factors["q"] = np.mean([m.T @ p for m in ms], 0)
    mean = p @ factors["q"].T
    return mean, [m - mean for m in ms]


def _epfl(hyper: dict, ms: list, factors: dict, count: int) -> tuple[np.ndarray, list]:
    total = np.zeros_like(ms[0])
    for it in range(hyper["iters"]):
        even = (count * hyper["iters"] + it) % 2 == 0
        held, fitted = ("p", "q") if even else ("q", "p")
        side = factors[held] = _orth(factors[held])
        own = [(m.T if even else m) @ side for m in ms]
        factors[fitted] = sum(own)
        parts = [side @ o.T if even else o @ side.T for o in own]
        ms = [m - part for m, part in zip(ms, parts, strict=True)]
        total = total + np.mean(parts, 0)
    return total, ms


def powersgd(method: str, hyper: dict[str, Any], seed: int, workers: list[str]) -> Arrays:
    """A trajectory of one of the three forms of ``method``."""
    steps, rank = hyper.get("T", 7), hyper["rank"]
    arrays, params, grads = inputs(seed, steps, workers)
    random = np.random.default_rng(seed + 1)
    names = {"powersgd": ("p_init", "q_init"), "powersgd_epfl": ("P0", "Q0")}
    factors: dict[str, dict[str, np.ndarray]] = {}
    for leaf, (m, n) in ((k, s) for k, s in SHAPES.items() if len(s) == 2):
        r = min(rank, m, n)
        sent = r * (m + n) * (1.0 if method == "powersgd_torch" else 0.5 * hyper["iters"])
        if method != "powersgd" and m * n <= hyper["min_compression_rate"] * sent:
            continue
        drawn = {
            side: np.float32(random.standard_normal((size, r)))
            for side, size in (("p", m), ("q", n))
        }
        factors[leaf] = {side: np.float64(x) for side, x in drawn.items()}
        if method == "powersgd_torch":
            arrays[f"q0/{leaf}"] = drawn["q"]
        else:
            for name, side in zip(names[method], "pq", strict=True):
                arrays[f"{name}/{leaf}"] = drawn[side]
    error = [{k: np.zeros(SHAPES[k]) for k in factors} for _ in workers]
    run = _torch if method == "powersgd_torch" else _epfl
    momentum = {k: np.zeros(s) for k, s in SHAPES.items()}
    for t, step in enumerate(grads):
        for leaf in SHAPES:
            mean = np.mean([np.float64(g[leaf]) for g in step], 0)
            begun = t - hyper.get("start", 0)
            if leaf in factors and begun >= 0:
                ms = [g[leaf] + e[leaf] for g, e in zip(step, error, strict=True)]
                mean, left = run(hyper, ms, factors[leaf], begun)
                if hyper.get("use_error_feedback", True):
                    for e, missing in zip(error, left, strict=True):
                        e[leaf] = missing
            momentum[leaf] = hyper.get("mom", 0.0) * momentum[leaf] + mean
            params[leaf] = params[leaf] - hyper["lr"] * momentum[leaf]
            arrays[f"agg/{t}/{leaf}"] = mean
            arrays[f"p/{t}/{leaf}"] = np.array(params[leaf])
        if method != "powersgd_torch":
            for name, e in zip(workers, error, strict=True):
                arrays |= {f"err/{t}/{name}/{k}": np.array(v) for k, v in e.items()}
    return arrays


def _signs(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x) / np.sqrt(x.size) * np.where(x >= 0, 1.0, -1.0)


def _allreduce(xs: list, here: list, there: list) -> np.ndarray:
    """DeepSpeed's compressed average of flat arrays; errors are changed in place."""
    size, count = xs[0].size, len(xs)
    length = here[0].size
    sent = []
    for x, e in zip(xs, here, strict=True):
        y = np.pad(x, (0, length - size)) + e
        sent.append(_signs(y))
        e[:] = y - sent[-1]
    out = []
    for j, e in enumerate(there):
        chunk = slice(j * length // count, (j + 1) * length // count)
        z = np.mean([c[chunk] for c in sent], 0) + e
        out.append(_signs(z))
        e[:] = z - out[-1]
    return np.concatenate(out)[:size]


def onebit_adam(hyper: dict[str, Any], seed: int, workers: list[str]) -> Arrays:
    """A trajectory of 1-bit Adam whose call that allocates counts as a step."""
    arrays, params, grads = inputs(seed, hyper["T"], workers)
    (b1, b2), count = hyper["betas"], len(workers)
    unit = count * np.lcm(count, 8)
    lengths = {k: -(-int(np.prod(s)) // unit) * unit for k, s in SHAPES.items()}
    here = {k: [np.zeros(n) for _ in workers] for k, n in lengths.items()}
    there = {k: [np.zeros(n // count) for _ in workers] for k, n in lengths.items()}
    m = {k: np.zeros(s) for k, s in SHAPES.items()}
    v = {k: np.zeros(s) for k, s in SHAPES.items()}
    for t, step in enumerate(grads):
        for k, shape in SHAPES.items():
            own = [b1 * m[k] + (1 - b1) * g[k] for g in step]
            if t < max(1, hyper["freeze"] - 1):
                g = np.mean([np.float64(tree[k]) for tree in step], 0)
                m[k], v[k] = np.mean(own, 0), b2 * v[k] + (1 - b2) * g**2
            else:
                m[k] = _allreduce([x.reshape(-1) for x in own], here[k], there[k]).reshape(shape)
            u = m[k] / (np.sqrt(v[k]) + hyper["eps"]) + hyper["wd"] * params[k]
            params[k] = params[k] - hyper["lr"] * u
            arrays |= {f"p/{t}/{k}": params[k], f"m/{t}/{k}": m[k]}
            for name, e, s in zip(workers, here[k], there[k], strict=True):
                arrays |= {f"werr/{t}/{name}/{k}": e.copy(), f"serr/{t}/{name}/{k}": s.copy()}
    return arrays
