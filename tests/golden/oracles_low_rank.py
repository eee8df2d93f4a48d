"""Slow float64 NumPy forms of the low-rank methods, and files of other settings made with them."""

from typing import Any

import numpy as np

SHAPES = {"wide": (6, 9), "tall": (9, 5), "square": (6, 6), "bias": (7,)}
STEPS = 7
_ZERO_AT = 4


def inputs(seed: int) -> dict[str, np.ndarray]:
    """Parameters and gradients of float32 values; one leaf has a zero gradient."""
    random = np.random.default_rng(seed)
    arrays = {
        f"p0/{k}": (0.5 * random.standard_normal(s)).astype(np.float32) for k, s in SHAPES.items()
    }
    for t in range(STEPS):
        for k, s in SHAPES.items():
            g = 0.1 * random.standard_normal(s) * (k != "square" or t != _ZERO_AT)
            arrays[f"g/{t}/{k}"] = g.astype(np.float32)
    return arrays


class Basis:
    """A basis (m, r) or (r, n) as the references hold it, drawn at random and recorded."""

    def __init__(self, shape: tuple[int, int], hyper: dict[str, Any], random: Any) -> None:
        (m, n), rank = shape, hyper["rank"]
        std = hyper.get("proj_type", "std")
        right = {"std": m >= n, "reverse_std": m < n, "right": True, "left": False}[std]
        self.right, size = right, n if right else m
        q = np.linalg.qr(random.standard_normal((size, rank)))[0]
        if hyper.get("proj", "svd") == "random":
            q = random.standard_normal((size, rank)) / np.sqrt(rank)
        self.matrix = np.float32(q.T if right else q)

    def down(self, g: np.ndarray) -> np.ndarray:
        p = np.float64(self.matrix)
        return g @ p.T if self.right else p.T @ g

    def up(self, x: np.ndarray) -> np.ndarray:
        p = np.float64(self.matrix)
        return x @ p if self.right else p @ x


def adam(state: dict, g: np.ndarray, hyper: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Uncorrected direction, and the factor that corrects it; RMSProp, which is not corrected."""
    b1, b2 = hyper["betas"]
    if hyper.get("inner") == "rmsprop":
        state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
        return g / (np.sqrt(state["v"]) + hyper["eps"]), 1.0
    state["n"] = n = state.get("n", 0) + 1
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g**2
    return state["m"] / (np.sqrt(state["v"]) + hyper["eps"]), np.sqrt(1 - b2**n) / (1 - b1**n)


def limited(state: dict, u: np.ndarray) -> np.ndarray:
    """The official limiter of growth."""
    length = np.linalg.norm(u)
    if "q" in state:
        over = max(length / (state["q"] + 1e-8), 1.01) / 1.01
        u, length = u / over, length / over
    state["q"] = length
    return u


def galore_adamw(state: dict, g: np.ndarray, basis: Basis, hyper: dict[str, Any]) -> np.ndarray:
    direction, factor = adam(state, basis.down(g), hyper)
    return factor * hyper["scale"] * basis.up(direction)


def apollo(state: dict, g: np.ndarray, basis: Basis, hyper: dict[str, Any]) -> np.ndarray:
    low = basis.down(g)
    direction, factor = adam(state, low, hyper)
    axis = (1 if basis.right else 0) if hyper["scale_type"] == "channel" else None
    norms = [np.linalg.norm(x, axis=axis, keepdims=axis is not None) for x in (direction, low)]
    u, root = norms[0] / (norms[1] + 1e-8) * g, np.sqrt(hyper["scale"])
    return factor * (limited(state, root * u) if hyper["scale_front"] else root * limited(state, u))


def fira(state: dict, g: np.ndarray, basis: Basis, hyper: dict[str, Any]) -> np.ndarray:
    low = basis.down(g)
    direction, factor = adam(state, low, hyper)
    axis = 1 if basis.right else 0
    norms = [np.linalg.norm(x, axis=axis, keepdims=True) for x in (direction, low)]
    rest = (g - hyper["alpha"] * basis.up(low)) * norms[0] / (norms[1] + 1e-8)
    return factor * (hyper["alpha"] * basis.up(direction) + limited(state, rest))


METHODS = {
    "galore_adamw": galore_adamw,
    "apollo": apollo,
    "apollo_svd": apollo,
    "apollo_mini": apollo,
    "fira": fira,
}


def trajectory(method: str, hyper: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Inputs, recorded bases, and what the method makes of them."""
    arrays = inputs(seed)
    random = np.random.default_rng(seed + 1)
    params = {k: np.float64(arrays[f"p0/{k}"]) for k in SHAPES}
    states: dict[str, dict] = {k: {} for k in SHAPES}
    bases: dict[str, Basis] = {}
    for t in range(STEPS):
        for k, p in params.items():
            g = np.float64(arrays[f"g/{t}/{k}"])
            if p.ndim < 2:
                direction, factor = adam(states[k], g, hyper)
                u = factor * direction
            else:
                if t % hyper["update_proj_gap"] == 0:
                    bases[k] = Basis(p.shape, hyper, random)
                arrays[f"proj/{t}/{k}"] = bases[k].matrix
                u = METHODS[method](states[k], g, bases[k], hyper)
            stepped = p - hyper["lr"] * u
            params[k] = stepped - hyper["lr"] * hyper["weight_decay"] * stepped
            arrays[f"p/{t}/{k}"] = np.float32(params[k])
    return arrays
