"""Replicas with outer steps in NumPy float64, one leaf and one replica after the other."""

from typing import Any

import numpy as np

SHAPES = {"bias": (3,), "tall": (4, 2), "wide": (2, 3)}
Tree = dict[str, np.ndarray]


class Adam:
    """torch's AdamW of one replica."""

    def __init__(self, hyper: dict[str, Any], params: Tree) -> None:
        self.hyper, self.steps = hyper, 0
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.v = {name: np.zeros_like(p) for name, p in params.items()}

    def step(self, params: Tree, grads: Tree) -> None:
        b1, b2 = self.hyper.get("inner_betas", (0.9, 0.999))
        rate, self.steps = self.hyper["inner_lr"], self.steps + 1
        for name, g in grads.items():
            self.m[name] = b1 * self.m[name] + (1 - b1) * g
            self.v[name] = b2 * self.v[name] + (1 - b2) * g * g
            root = np.sqrt(self.v[name] / (1 - b2**self.steps)) + 1e-8
            decay = rate * self.hyper.get("inner_wd", 0.0) * params[name]
            first = self.m[name] / (1 - b1**self.steps)
            params[name] = params[name] - decay - rate * first / root


class Diloco:
    """Fragment by fragment, displacements taken before they are used; whole by default."""

    def __init__(self, hyper: dict[str, Any], params: Tree, method: str) -> None:
        self.hyper, self.method = hyper, method
        self.fragments = hyper.get("fragments", [list(params)])
        self.every = hyper.get("sync_every", hyper.get("local_steps"))
        self.anchor = {name: p.copy() for name, p in params.items()}
        self.m = {name: np.zeros_like(p) for name, p in params.items()}
        self.away: Tree = {}

    def step(self, count: int, all_params: list[Tree], groups: Any) -> None:
        del groups
        apart, alpha = self.every // len(self.fragments), self.hyper.get("alpha", 0.0)
        early = count + self.hyper.get("delay", 0)
        if early % apart == 0:
            for name in self.fragments[(early // apart - 1) % len(self.fragments)]:
                moved = [self.anchor[name] - params[name] for params in all_params]
                self.away[name] = sum(moved) / len(moved)
        if count % apart:
            return
        for name in self.fragments[(count // apart - 1) % len(self.fragments)]:
            self._move(name, self.away.pop(name))
            for params in all_params:
                params[name] = (1 - alpha) * self.anchor[name] + alpha * params[name]

    def _move(self, name: str, away: np.ndarray) -> None:
        rate, mu = self.hyper["outer_lr"], self.hyper["outer_momentum"]
        if self.method == "diloco_heavyball":
            self.m[name] = mu * self.m[name] - rate * away
            self.anchor[name] = self.anchor[name] + self.m[name]
        else:
            self.m[name] = mu * self.m[name] + away
            self.anchor[name] = self.anchor[name] - rate * (away + mu * self.m[name])


class Noloco:
    """Groups, each replica with an anchor and a momentum."""

    def __init__(self, hyper: dict[str, Any], params: Tree, method: str) -> None:
        del method
        self.hyper = hyper
        self.phi = [{k: p.copy() for k, p in params.items()} for _ in range(hyper["workers"])]
        self.d = [{k: 0 * p for k, p in params.items()} for _ in range(hyper["workers"])]

    def step(self, count: int, all_params: list[Tree], groups: Any) -> None:
        del count
        if groups is None:
            return
        alpha, beta = self.hyper["outer_momentum"], self.hyper["outer_lr"]
        gamma = self.hyper.get("gamma", beta)
        for group in groups:
            for name in SHAPES:
                moved = np.mean([all_params[j][name] - self.phi[j][name] for j in group], axis=0)
                centre = np.mean([self.phi[j][name] for j in group], axis=0)
                for i in group:
                    apart = self.phi[i][name] - centre
                    self.d[i][name] = alpha * self.d[i][name] + beta * moved - gamma * apart
                    self.phi[i][name] = self.phi[i][name] + self.d[i][name]
                    all_params[i][name] = self.phi[i][name].copy()


def outer(method: str, hyper: dict[str, Any], steps: int, seed: int) -> Tree:
    """A file's arrays."""
    random: Any = np.random.default_rng(seed)
    p0 = {name: np.float32(random.standard_normal(shape)) for name, shape in SHAPES.items()}
    start = {name: np.float64(p) for name, p in p0.items()}
    rule: Any = (Noloco if method == "noloco" else Diloco)(hyper, start, method)
    replicas = [{k: p.copy() for k, p in start.items()} for _ in range(hyper["workers"])]
    inner = [Adam(hyper, start) for _ in replicas]
    out = {f"p0/{name}": p for name, p in p0.items()}
    for t in range(steps):
        for i, (params, adam) in enumerate(zip(replicas, inner, strict=True)):
            grads = {k: np.float32(random.standard_normal(s)) for k, s in SHAPES.items()}
            adam.step(params, {k: np.float64(g) for k, g in grads.items()})
            out |= {f"g/{t}/{i}/{k}": g for k, g in grads.items()}
        groups = None
        if method == "noloco" and (t + 1) % hyper["local_steps"] == 0:
            drawn = random.permutation(hyper["workers"])
            groups = drawn.reshape(-1, hyper["group"])
            out[f"groups/{t}"] = groups
        rule.step(t + 1, replicas, groups)
        for i, params in enumerate(replicas):
            out |= {f"pw/{t}/{i}/{k}": np.float32(p) for k, p in params.items()}
    return out
