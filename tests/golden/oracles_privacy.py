"""DP-SGD as Optax has it, and the rounds of DP-BREM's code, in NumPy float64."""

from typing import Any

import jax
import numpy as np

SHAPES = {"a": (2, 3), "z": (4,)}
Leaves = dict[str, np.ndarray]


def _norm(tree: Leaves) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x)) for x in tree.values())))


def _drawn(rng: np.random.Generator, *lead: int, scale: float = 1.0) -> Leaves:
    out = {}
    for leaf, shape in SHAPES.items():
        size = scale * 10.0 ** rng.uniform(-1, 1, lead + (1,) * len(shape))
        out[leaf] = np.float32(size * rng.standard_normal((*lead, *shape)))
    return out


def _one(tree: Leaves, index: int) -> Leaves:
    return {leaf: np.float64(x[index]) for leaf, x in tree.items()}


def dp_aggregate(hyper: dict[str, Any], steps: int, batch: int) -> dict[str, np.ndarray]:
    """A file's arrays: keys split as Optax does, clipping and momentum in float64."""
    rng = np.random.default_rng(0)
    p = {leaf: np.float64(x) for leaf, x in _drawn(rng).items()}
    out = {f"p0/{leaf}": np.float32(x) for leaf, x in p.items()}
    key, velocity = jax.random.key(hyper["key"]), {leaf: 0.0 * x for leaf, x in p.items()}
    clip, decay = hyper["clip"], hyper["momentum"] or 0.0
    for t in range(steps):
        examples = _drawn(rng, batch)
        key, *keys = jax.random.split(key, len(SHAPES) + 1)
        ones = [_one(examples, i) for i in range(batch)]
        factors = [min(1.0, clip / _norm(one)) for one in ones]
        for leaf, own in zip(sorted(SHAPES), keys, strict=True):
            noise = np.asarray(jax.random.normal(own, SHAPES[leaf], np.float32))
            total = sum(f * one[leaf] for f, one in zip(factors, ones, strict=True))
            g = (total + clip * hyper["noise_multiplier"] * np.float64(noise)) / batch
            velocity[leaf] = decay * velocity[leaf] + g
            p[leaf] = p[leaf] - hyper["lr"] * velocity[leaf]
            out[f"gex/{t}/{leaf}"], out[f"noise/{t}/{leaf}"] = examples[leaf], noise
            out[f"p/{t}/{leaf}"] = np.float32(p[leaf])
    return out


def dp_brem(hyper: dict[str, Any], rounds: int, clients: int) -> dict[str, np.ndarray]:
    """A file's arrays: clients one after the other, a draw without anybody repeated."""
    rng = np.random.default_rng(1)
    p = {leaf: np.float64(x) for leaf, x in _drawn(rng).items()}
    out: dict[str, Any] = {f"p0/{leaf}": np.float32(x) for leaf, x in p.items()}
    centre = {leaf: 0.0 * x for leaf, x in p.items()}
    momenta = [dict(centre) for _ in range(clients)]
    beta, batch = hyper["beta"], hyper["batch"]
    for t in range(rounds):
        fall = 1.0 - 0.7 * min(t / rounds, 1.0) if hyper["decay"] else 1.0
        long, far = hyper["R"] * fall, hyper["C"] * fall
        selected = np.array([], int)
        while not selected.size:
            selected = np.nonzero(rng.uniform(size=clients) <= hyper["q"])[0]
        for i in range(clients):
            examples = _drawn(rng, batch, scale=hyper.get("scale", 1.0))
            out |= {f"gex/{t}/{i}/{leaf}": x for leaf, x in examples.items()}
            for b in range(batch):
                one = _one(examples, b)
                factor = min(1.0, long / (_norm(one) + 1e-6)) if long >= 0 else 1.0
                for leaf in SHAPES:
                    old = momenta[i][leaf] * (beta if b == 0 else 1.0)
                    momenta[i][leaf] = old + (1 - beta) * factor * one[leaf] / batch
        total = {leaf: 0.0 * x for leaf, x in p.items()}
        for i in selected:
            away = {leaf: momenta[i][leaf] - centre[leaf] for leaf in SHAPES}
            factor = min(1.0, far / _norm(away)) if far > 0 else 1.0
            total = {leaf: total[leaf] + factor * away[leaf] for leaf in SHAPES}
        for leaf, shape in SHAPES.items():
            noise = np.float32(rng.standard_normal(shape))
            std = hyper["sigma"] * long if hyper["sigma"] > 0 and long > 0 else 0.0
            centre[leaf] = centre[leaf] + (total[leaf] + std * noise) / len(selected)
            p[leaf] = p[leaf] - hyper["lr"] * centre[leaf]
            out[f"noise/{t}/{leaf}"], out[f"p/{t}/{leaf}"] = noise, np.float32(p[leaf])
            out[f"server_momentum/{t}/{leaf}"] = np.float32(centre[leaf])
        out[f"selected/{t}"] = selected
    return out
