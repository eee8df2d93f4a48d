"""A slow float64 NumPy form of PolyStep, and files of other hyperparameters made with it."""

import itertools
import json

import numpy as np

SHAPES = {"l1.weight": (4, 3), "l1.bias": (4,), "l2.weight": (2, 4)}


def corners(polytope, p):
    if polytope == "orthoplex":
        return np.vstack([np.eye(p), -np.eye(p)])
    if polytope == "cube":
        signs = itertools.product([1, -1], repeat=p)
        return np.array([s[::-1] for s in signs]) / np.sqrt(p)
    # A simplex from its definition: unit corners with equal inner products that sum to 0.
    out = np.zeros((p + 1, p))
    out[:p] = np.sqrt(1 + 1 / p) * np.eye(p) - (np.sqrt(p + 1) + 1) / np.sqrt(p**3)
    out[p] = 1 / np.sqrt(p)
    return out - out.mean(0)


def value(given, t):
    """A number, or that of a schedule at step t."""
    if not isinstance(given, dict):
        return given
    init, target = given["init"], given["target"]
    if given["type"] == "LinearEpsilon":
        return max(init - given["decay"] * t, target)
    total = given.get("total_steps") or int((init - target) / given["decay"])
    return target + 0.5 * (init - target) * (1 + np.cos(np.pi * min(t, total) / total))


def plan(cost, eps, solver):
    kernel = np.exp(-(cost - cost.min(1, keepdims=True)) / eps)
    if solver == "sinkhorn":
        for _ in range(20000):
            kernel *= 1 / kernel.sum(0) / kernel.shape[1]
            kernel *= 1 / kernel.sum(1, keepdims=True) / kernel.shape[0]
    return kernel / kernel.sum(1, keepdims=True)


def scaled(cost, scale):
    finite = np.isfinite(cost)
    high = max(1e6, 2 * np.abs(cost[finite]).max() + 1)
    cost = np.where(finite, cost, high)
    if scale == "mean":
        return cost / np.abs(cost).mean()
    return cost / (np.abs(cost).max() if scale == "max_cost" else scale or 1.0)


def move(x, losses, rotations, h, t, memory):
    """Returns particles after a step; ``memory`` holds velocity, multiplier and past costs."""
    v = corners(h["polytope"], x.shape[1])
    eps, step = value(h["epsilon"], t), value(h["step_radius"], t)
    cost = losses.reshape(len(x), len(v), -1).mean(-1)
    factor = memory.get("multiplier", 1.0)
    # The swarm's radius is what it is; a scheduled one is not multiplied by epsilon either.
    step *= factor * (1 if isinstance(h["step_radius"], dict) or "num_particles" in h else eps)
    weights = plan(scaled(cost, h["scale_cost"]), eps, h["solver"])
    moved = np.array([step * r @ (w @ v) for r, w in zip(rotations, weights, strict=True)])
    if h.get("use_momentum"):
        share = min(1, t / max(1, h["max_iterations"] - 1))
        beta = h["momentum_init"] + share * (h["momentum_final"] - h["momentum_init"])
        memory["velocity"] = moved = beta * memory.get("velocity", 0.0) + moved
        moved = h["velocity_lr"] * moved
    if h.get("use_adaptive_radius"):
        adapt(cost.mean(), h, memory)
    return x + moved


def adapt(cost, h, memory):
    last, memory["last"] = memory.get("last"), cost
    if last is None:
        return
    still = abs(cost - last) / (abs(last) + 1e-10) < h["stagnation_threshold"]
    memory["still"] = memory.get("still", 0) + 1 if still else 0
    if memory["still"] >= h["stagnation_patience"]:
        memory["still"] = 0
        memory["multiplier"] = min(memory.get("multiplier", 1.0) * 1.5, 3.0)
    elif cost < last:
        memory["multiplier"] = max(memory.get("multiplier", 1.0) * 0.9, 0.5)


def rotation(rng, p):
    q, r = np.linalg.qr(rng.standard_normal((p, p)))
    q = q * np.sign(np.diag(r))
    return q * np.where(np.arange(p) == 0, np.sign(np.linalg.det(q)), 1)


def fed(rng, count, t, odd):
    """Losses of a generation: level at step 2, with one lost at step 1 if asked for."""
    losses = np.zeros(count) + 0.5 if t == 2 else rng.uniform(0.0, 4.0, count).round(3)
    if odd and t == 1:
        losses[1] = np.inf
    return losses.astype(np.float32)


def write(file, method, hyper, *, steps, said=None, odd=False):
    """Runs the oracle on random losses and stores the trajectory."""
    rng = np.random.default_rng(5)
    meta = {"method": method, "hyperparameters": hyper if said is None else said}
    arrays, memory = {}, {}
    if method == "polystep_es":
        x = rng.standard_normal((hyper["num_particles"], hyper["dim"])).astype(np.float32)
        arrays["p0/x"], space = x, None
    else:
        space = Space(rng, hyper)
        arrays |= {f"p0/{k}": p for k, p in space.start.items()}
        arrays |= {f"proj/{k}": p for k, p in space.bases.items()}
        x = arrays["x0"] = space.particles(hyper["particle_dim"])
    x = x.astype(np.float64)
    dim = x.shape[1]
    count = len(x) * len(corners(hyper["polytope"], dim)) * hyper.get("num_probe", 1)
    for t in range(steps):
        losses = fed(rng, count, t, odd)
        rotations = np.array([rotation(rng, dim) for _ in x]).astype(np.float32)
        arrays[f"rot/{t}"] = rotations
        arrays[f"{'f' if space is None else 'losses'}/{t}"] = losses
        x = move(x, losses.astype(np.float64), rotations.astype(np.float64), hyper, t, memory)
        after = {"x": x} if space is None else space.leaves(x)
        arrays |= {f"p/{t}/{k}": p.astype(np.float32) for k, p in after.items()}
    np.savez(file, meta=json.dumps(meta), **arrays)


class Space:
    """Leaves of the oracle's model, in full or in a subspace."""

    def __init__(self, rng, hyper):
        self.start = {k: rng.standard_normal(s).astype(np.float32) for k, s in SHAPES.items()}
        rank = int(hyper.get("subspace", "rank 0").split()[-1])
        self.bases = {}
        for k, p in self.start.items() if rank else ():
            if p.ndim > 1:
                coords = min(rank, *p.shape) * sum(p.shape)
                drawn = rng.standard_normal((p.size, coords))
                basis = np.linalg.qr(drawn)[0] if coords < p.size else drawn / np.sqrt(coords)
                self.bases[k] = basis.astype(np.float32)
        self.rank = rank

    def sizes(self):
        return {
            k: self.bases[k].shape[1] if k in self.bases else p.size for k, p in self.start.items()
        }

    def particles(self, dim):
        total = sum(self.sizes().values())
        flat = np.zeros(-(-total // dim) * dim, np.float32)
        if not self.rank:
            flat[:total] = np.concatenate([p.reshape(-1) for p in self.start.values()])
        return flat.reshape(-1, dim)

    def leaves(self, x):
        flat, out, at = x.reshape(-1), {}, 0
        for k, size in self.sizes().items():
            own, at = flat[at : at + size], at + size
            base = self.start[k].astype(np.float64)
            moved = self.bases[k].astype(np.float64) @ own if k in self.bases else own
            out[k] = (base if self.rank else 0.0) + moved.reshape(base.shape)
        return out


_BASE = {"solver": "softmax", "polytope": "orthoplex", "scale_cost": 1.0}
_FULL = _BASE | {
    "epsilon": 0.4, "step_radius": 0.7, "probe_radius": 0.6, "num_probe": 1, "particle_dim": 2,
}  # fmt: skip
_SUB = _BASE | {
    "subspace": "hybrid rank 2", "particle_dim": 5, "epsilon": 0.3, "step_radius": 1.5,
    "probe_radius": 1.0,
}  # fmt: skip
_LINEAR = {"type": "LinearEpsilon", "init": 0.9, "target": 0.3, "decay": 0.25}
_COSINE = {"type": "CosineEpsilon", "init": 2.0, "target": 0.5, "decay": 0.5}
_MOMENTUM = {
    "use_momentum": True, "momentum_init": 0.3, "momentum_final": 0.6, "max_iterations": 4,
    "velocity_lr": 0.8,
}  # fmt: skip
_ADAPT = {"use_adaptive_radius": True, "stagnation_threshold": 0.05, "stagnation_patience": 1}
_ES = _BASE | {"dim": 4, "num_particles": 3, "epsilon": 0.3, "step_radius": 0.4}

VARIANTS = {
    "full, simplex of 3": ("polystep_full", _FULL | {"polytope": "simplex", "particle_dim": 3}, {}),
    "full, cube, two probes": ("polystep_full", _FULL | {"polytope": "cube", "num_probe": 2}, {}),
    "full, sinkhorn": ("polystep_full", _FULL | {"solver": "sinkhorn"}, {}),
    "full, epsilon and step annealed": (
        "polystep_full", _FULL | {"epsilon": _LINEAR, "step_radius": _COSINE}, {},
    ),
    "full, momentum, costs over their mean": (
        "polystep_full", _FULL | _MOMENTUM | {"scale_cost": "mean"}, {"odd": True},
    ),
    "full, adaptive radius": ("polystep_full", _FULL | _ADAPT, {}),
    "full, a lost cost": ("polystep_full", _FULL | {"scale_cost": 2.0}, {"odd": True}),
    "subspace": ("polystep_subspace", _SUB | _MOMENTUM, {}),
    "subspace, rank above sides": ("polystep_subspace", _SUB | {"subspace": "hybrid rank 9"}, {}),
    "es": ("polystep_es", _ES | {"scale_cost": "max_cost", "polytope": "simplex"}, {}),
    "es, cube and sinkhorn": ("polystep_es", _ES | {"polytope": "cube", "solver": "sinkhorn"}, {}),
}  # fmt: skip

WRONG = (
    ("full, simplex of 3", "epsilon", 0.5),
    ("full, epsilon and step annealed", "step_radius", 2.0),
    ("full, momentum, costs over their mean", "momentum_final", 0.9),
    ("full, momentum, costs over their mean", "scale_cost", "max_cost"),
    ("full, adaptive radius", "stagnation_threshold", 1e-4),
    ("es", "step_radius", 0.5),
)
