"""CMA-ES with a full covariance in slow NumPy float64, member by member."""

import math
from typing import Any

import numpy as np


class Cma:
    """State and constants, as Hansen's tutorial has them; costs are minimised."""

    def __init__(self, mean: Any, sigma: float, population: int) -> None:
        d, n = len(mean), population
        self.d, self.n, self.sigma, self.g = d, n, sigma, 0
        self.mean = np.array(mean, np.float64)
        self.c, self.ps, self.pc = np.eye(d), np.zeros(d), np.zeros(d)
        raw = [math.log((n + 1) / 2) - math.log(k) for k in range(1, n + 1)]
        good, bad = raw[: n // 2], raw[n // 2 :]
        self.mu = sum(good) ** 2 / sum(w * w for w in good)
        minus = sum(bad) ** 2 / sum(w * w for w in bad)
        self.c1 = 2 / ((d + 1.3) ** 2 + self.mu)
        rank_mu = 2 * (self.mu - 2 + 1 / self.mu) / ((d + 2) ** 2 + self.mu)
        self.cmu = min(1 - self.c1 - 1e-8, rank_mu)
        self.cc = (4 + self.mu / d) / (d + 4 + 2 * self.mu / d)
        self.cs = (self.mu + 2) / (d + self.mu + 5)
        self.ds = 1 + 2 * max(0, math.sqrt((self.mu - 1) / (d + 1)) - 1) + self.cs
        self.chi = math.sqrt(d) * (1 - 1 / (4 * d) + 1 / (21 * d * d))
        least = min(
            1 + self.c1 / self.cmu,
            1 + 2 * minus / (self.mu + 2),
            (1 - self.c1 - self.cmu) / (d * self.cmu),
        )
        up = sum(w for w in raw if w > 0)
        down = sum(-w for w in raw if w < 0)
        self.w = [w / up if w >= 0 else least * w / down for w in raw]

    def root(self) -> tuple[Any, Any]:
        """C^(1/2) and its inverse, through the symmetric root."""
        values, basis = np.linalg.eigh((self.c + self.c.T) / 2)
        return basis @ np.diag(values**0.5) @ basis.T, basis @ np.diag(values**-0.5) @ basis.T

    def tell(self, x: Any, costs: Any) -> None:
        """One generation."""
        order = sorted(range(self.n), key=lambda i: costs[i])
        inverse = self.root()[1]
        steps = [(np.asarray(x[i], np.float64) - self.mean) / self.sigma for i in order]
        move = sum(max(w, 0.0) * y for w, y in zip(self.w, steps, strict=True))
        self.mean = self.mean + self.sigma * move
        cs, cc, d = self.cs, self.cc, self.d
        self.g += 1
        self.ps = (1 - cs) * self.ps + math.sqrt(cs * (2 - cs) * self.mu) * inverse @ move
        norm = float(np.linalg.norm(self.ps))
        self.sigma *= math.exp(cs / self.ds * (norm / self.chi - 1))
        started = math.sqrt(1 - (1 - cs) ** (2 * (self.g + 1)))
        h = 1.0 if norm / started < (1.4 + 2 / (d + 1)) * self.chi else 0.0
        self.pc = (1 - cc) * self.pc + h * math.sqrt(cc * (2 - cc) * self.mu) * move
        new = (1 + self.c1 * (1 - h) * cc * (2 - cc) - self.c1 - self.cmu * sum(self.w)) * self.c
        new = new + self.c1 * np.outer(self.pc, self.pc)
        for w, y in zip(self.w, steps, strict=True):
            factor = 1.0 if w >= 0 else d / (np.sum((inverse @ y) ** 2) + 1e-8)
            new = new + self.cmu * w * factor * np.outer(y, y)
        self.c = new
