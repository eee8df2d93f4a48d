"""Files of schedules and of Schedule-Free AdamW with other settings, by slow NumPy in float64."""

import json
import math

import numpy as np

LEAVES = {"wide": (3, 5), "bias": (4,)}

# Held-out files may have other numbers, shapes and cycles.
SCHEDULES = {
    "wsd_linear": {"peak": 0.3, "warmup_steps": 0, "decay_steps": 50, "min_lr_ratio": 0.0},
    "wsd_inv": {"peak": 2.0, "warmup_steps": 3, "decay_steps": 40, "min_lr_ratio": 0.2},
    "wsd_cosine": {"peak": 1.0, "warmup_steps": 7, "decay_steps": 31, "min_lr_ratio": 0.05},
    "wsd_s_inv": {
        "peak": 1.5,
        "warmup_steps": 4,
        "decay_steps": 10,
        "min_lr_ratio": 0.3,
        "cycle_ends": [20, 60],
        "rewarmup_steps": 5,
    },
}
FREE = {
    "warm": {"warmup_steps": 4, "r": 1.0, "weight_decay": 0.1},
    "plain_mean": {"weight_lr_power": 0.0, "betas": [0.5, 0.9]},
    "at_z": {"decay_at_z": True, "weight_decay": 0.2, "lr": 0.05},
    "inner_momentum": {"inner_momentum": 0.6, "warmup_steps": 2},
}
DEFAULTS = {
    "lr": 0.01,
    "betas": [0.9, 0.99],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "warmup_steps": 0,
    "r": 0.0,
    "weight_lr_power": 2.0,
}


def _down(kind, r, k, length):
    k = min(k, length)
    if kind == "linear":
        return 1 - (1 - r) * k / length
    if kind == "cosine":
        return r + (1 - r) * 0.5 * (1 + math.cos(math.pi * k / length))
    return max(min(1.0, 1 / ((1 / r - 1) * max(k, 1) / length + 1)), r)


def course(name, entry, total):
    """levanter's cycles, a step at a time."""
    ends = [0, *entry.get("cycle_ends", []), total]
    kind, r, decay = name.split("_")[-1], entry["min_lr_ratio"], entry["decay_steps"]
    out = []
    for t in range(total + 1):
        cycle = max(i for i in range(len(ends) - 1) if t >= ends[i] or i == 0)
        rise = entry["warmup_steps"] if cycle == 0 else entry.get("rewarmup_steps", 0)
        low = 0.0 if cycle == 0 else r
        k, falls = t - ends[cycle], ends[cycle + 1] - decay
        if k < rise:
            out.append(low + (1 - low) * k / rise)
        else:
            out.append(1.0 if t < falls else _down(kind, r, t - falls, decay))
    return entry["peak"] * np.array(out)


def write_schedules(file, total=150, change=None):
    """Writes a file of schedules; ``change`` tells another decay than was computed."""
    entries, arrays = {}, {}
    for name, entry in SCHEDULES.items():
        entries[name] = {"reference": "levanter", "total": total, **entry, **(change or {})}
        arrays[name] = course(name, entry, total)
    np.savez(file, meta=json.dumps({"method": "schedules", "entries": entries}), **arrays)


def write_free(file, hyper, steps=12, said=None):
    """Writes a trajectory of Schedule-Free AdamW; ``said`` are the numbers that the file tells."""
    h, random = {**DEFAULTS, **hyper}, np.random.default_rng(5)
    b1, b2 = h["betas"]
    q = h.get("inner_momentum", 0.0)
    arrays = {}
    for name, shape in LEAVES.items():
        y = random.standard_normal(shape)
        x, z, v, m = y.copy(), y.copy(), np.zeros(shape), np.zeros(shape)
        arrays[f"p0/{name}"] = y.astype(np.float32)
        top, total = 0.0, 0.0
        for t in range(steps):
            s, g = t + 1, 0.3 * random.standard_normal(shape).astype(np.float32)
            lr = h["lr"] * min(1.0, s / h["warmup_steps"]) if h["warmup_steps"] else h["lr"]
            top = max(top, lr)
            weight = s ** h["r"] * top ** h["weight_lr_power"]
            total += weight
            v = b2 * v + (1 - b2) * g.astype(float) ** 2
            m = q * m + (1 - q) * g
            d = m / (1 - q**s) / (np.sqrt(v / (1 - b2**s)) + h["eps"])
            at = z if h.get("decay_at_z") else y
            z = z - lr * (d + h["weight_decay"] * at)
            x = x + weight / total * (z - x)
            y = b1 * x + (1 - b1) * z
            arrays[f"g/{t}/{name}"] = g.astype(np.float32)
            for key, value in (("p", y), ("x", x), ("z", z)):
                arrays[f"{key}/{t}/{name}"] = value.astype(np.float32)
    meta = {"method": "schedule_free_adamw", "hyperparameters": {**h, **(said or {})}}
    np.savez(file, meta=json.dumps(meta), **arrays)
