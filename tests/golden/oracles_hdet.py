"""The authors' steps of HDET in NumPy float64, to write files with other settings."""

from typing import Any

import numpy as np

from tests.golden.cases_hdet import one_cycle


def hdet(hyper: dict[str, Any], steps: int, seed: int) -> dict[str, np.ndarray]:
    """A file's arrays: two groups of a leaf each."""
    random = np.random.default_rng(seed)
    replicas, every, alpha = hyper["N"], hyper["T"], hyper["alpha"]
    leaves = ("w0", "w1")
    p0 = {leaf: np.float32(random.standard_normal((2, 3))) for leaf in leaves}
    loss = np.float32(1.0 + 0.01 * random.standard_normal((steps + 1, replicas)))
    perms = np.array([random.permutation(replicas) for _ in range(2 * steps)])
    plan = [one_cycle(hyper, most, steps + 1) for most in hyper["max_lr"]]
    fall = np.log(hyper["div_factor"] / hyper["final_div_factor"])
    meetings = (hyper["total_steps"] - hyper["auto_lr_warmup_steps"]) / every
    gamma = 1.0 - np.exp(-fall / meetings)
    half = (replicas - 1) / 2
    rho = 1.0 + alpha * (np.arange(replicas) - half) / max(half, 0.5)
    active = hyper.get("auto_lr", True) and alpha != 0.0
    w = {leaf: np.repeat(np.float64(p0[leaf])[None], replicas, 0) for leaf in leaves}
    use = np.repeat(np.array([[table[0] for table in plan]]), replicas, 0)
    total, v, drawn, begun = np.zeros(replicas), np.zeros(2), 0, False
    out: dict[str, Any] = {f"p0/{leaf}": value for leaf, value in p0.items()}
    rates, ends = [], {leaf: [] for leaf in leaves}
    for t in range(steps):
        for j, leaf in enumerate(leaves):
            g = np.float32(0.1 * random.standard_normal((2, 3)))
            out[f"g/{t}/{leaf}"] = g
            w[leaf] = w[leaf] - use[:, j, None, None] * np.float64(g)
        total += loss[t]
        due = (t + 1) % every == 0 and active
        if due:
            w = {leaf: np.repeat(x.mean(0)[None], replicas, 0) for leaf, x in w.items()}
        if due and t + 1 >= hyper["auto_lr_warmup_steps"]:
            begun, means = True, total / every
            weights = np.exp((means.mean() - means) / hyper["loss_scale"])
            weights /= weights.sum()
            for j in range(2):
                centre = use[:, j].mean()
                v[j] *= hyper["momentum_of_lr"]
                v[j] += (1 - hyper["momentum_of_lr"]) * (weights @ use[:, j] - centre)
                base = centre * (1 - gamma) + hyper["lr_of_lr"] * v[j]
                use[:, j], drawn = base * rho[perms[drawn]], drawn + 1
        elif not begun:
            use = np.repeat(np.array([[table[t + 1] for table in plan]]), replicas, 0)
        total = np.zeros(replicas) if (t + 1) % every == 0 else total
        rates.append(use.copy())
        for leaf in leaves:
            ends[leaf].append(w[leaf])
    for leaf in leaves:
        out[f"w/{leaf}"] = np.float32(ends[leaf])
    return out | {"loss": loss, "lr": np.array(rates), "perms": perms}
