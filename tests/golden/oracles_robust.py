"""Robust rules on (W, dim) in NumPy float64, one client after the other, and files made of them."""

from collections.abc import Callable
from typing import Any

import numpy as np

SHAPES = {"w": (3, 2), "b": (3,), "s": ()}


def centered_clipping(v: np.ndarray, c: np.ndarray, tau: float, n_iter: int) -> np.ndarray:
    """The centre after a round."""
    for _ in range(n_iter):
        moves = np.zeros_like(c)
        for row in v:
            away = row - c
            length = np.linalg.norm(away)
            moves += away if length <= tau else away * tau / length
        c = c + moves / len(v)
    return c


def trimmed_mean(v: np.ndarray, b: int) -> np.ndarray:
    """Mean by coordinate without extremes."""
    return np.array([np.mean(sorted(col)[b : len(col) - b]) for col in v.T])


def krum_scores(v: np.ndarray, f: int, power: int) -> list[float]:
    """Sums over the nearest others."""
    out = []
    for i, row in enumerate(v):
        others = sorted(np.sum((row - v[j]) ** 2) ** power for j in range(len(v)) if j != i)
        out.append(sum(others[: max(1, len(v) - f - 2)]))
    return out


def multi_krum(v: np.ndarray, f: int, m: int, epfl: bool) -> np.ndarray:
    """Mean, or the code's sum, of the best."""
    best = np.argsort(krum_scores(v, f, 2 if epfl else 1), kind="stable")[:m]
    return v[best].sum(0) if epfl else v[best].mean(0)


def geometric_median(v: np.ndarray, steps: int, nu: float) -> np.ndarray:
    """Smoothed Weiszfeld from 0."""
    z = np.zeros(v.shape[1])
    for _ in range(steps):
        b = np.array([1.0 / max(np.linalg.norm(z - row), nu) for row in v])
        z = (b[:, None] * v).sum(0) / b.sum()
    return z


def bulyan(v: np.ndarray, f: int) -> np.ndarray:
    """Krum without replacement, then the values nearest to the median."""
    left, chosen = list(v), []
    theta = len(v) - 2 * f
    for _ in range(theta):
        chosen.append(left.pop(int(np.argmin(krum_scores(np.array(left), f, 1)))))
    out = []
    for col in np.array(chosen).T:
        order = np.argsort(np.abs(col - np.median(col)))
        out.append(np.mean(col[order[: theta - 2 * f]]))
    return np.array(out)


def rule_of(method: str, hyper: dict[str, Any]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """(vectors, last aggregate) -> aggregate of a file's method."""
    f = hyper.get("f", 0)
    share = hyper.get("proportiontocut", 0.0)
    return {
        "centered_clipping": lambda v, c: centered_clipping(v, c, hyper["tau"], hyper["n_iter"]),
        "krum": lambda v, c: multi_krum(v, f, 1, True),
        "multi_krum_sum": lambda v, c: multi_krum(v, f, hyper["m"], True),
        "krum_flwr": lambda v, c: multi_krum(v, f, 1, False),
        "multi_krum_flwr": lambda v, c: multi_krum(v, f, hyper["to_keep"], False),
        "trimmed_mean": lambda v, c: trimmed_mean(v, hyper["b"]),
        "trimmed_mean_flwr": lambda v, c: trimmed_mean(v, int(share * len(v))),
        "coordinate_median": lambda v, c: np.median(v, axis=0),
        "geometric_median": lambda v, c: geometric_median(v, hyper["T"], hyper["nu"]),
        "bulyan_flwr": lambda v, c: bulyan(v, f),
    }[method]


def file_of(method: str, hyper: dict[str, Any], workers: int, seed: int) -> dict[str, np.ndarray]:
    """A file's arrays: three steps, the last worker hostile."""
    random = np.random.default_rng(seed)
    rule, beta = rule_of(method, hyper), hyper.get("worker_momentum", 0.0)
    sizes = [int(np.prod(shape)) for shape in SHAPES.values()]
    p = np.float32(random.standard_normal(sum(sizes))).astype(np.float64)
    out: dict[str, np.ndarray] = {}

    def write(prefix: str, vector: np.ndarray) -> None:
        parts = np.split(vector, np.cumsum(sizes)[:-1])
        for part, (leaf, shape) in zip(parts, SHAPES.items(), strict=True):
            out[f"{prefix}/{leaf}"] = np.float32(part.reshape(shape))

    write("p0", p)
    momenta, c = np.zeros((workers, p.size)), np.zeros(p.size)
    for t in range(3):
        g = np.float32(1.0 + random.standard_normal((workers, p.size)))
        g[-1] *= -20.0
        for w in range(workers):
            write(f"g/{t}/{w}", g[w])
        momenta = beta * momenta + g
        c = rule(momenta, c)
        p = p - hyper["lr"] * c
        write(f"agg/{t}", c)
        write(f"p/{t}", p)
    return out
