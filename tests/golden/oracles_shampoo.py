"""A slow NumPy float64 form of Shampoo in facebookresearch's dialect."""

import itertools
from typing import Any

import numpy as np

from tests.golden.oracles_curvature import SHAPES, Array, Tree, along, drawn, gram, named


def _cut(shape: tuple[int, ...], most: int, keep: int) -> tuple[tuple[int, ...], list[Any]]:
    """The shape with neighbouring axes merged, and the slices of its blocks."""
    merged: list[int] = []
    sizes = [n for n in shape if n != 1] or [1]
    for left, size in reversed(list(enumerate(sizes))):
        if merged and merged[0] * size <= most and left + 1 + len(merged) > keep:
            merged[0] *= size
        else:
            merged.insert(0, size)
    sides = [[slice(i, i + most) for i in range(0, n, most)] for n in merged]
    return tuple(merged), list(itertools.product(*sides))


def _roots(a: Array, h: dict[str, Any], exponent: float) -> Array:
    values, vectors = np.linalg.eigh(a)
    return (vectors * (values + h["epsilon"]) ** exponent) @ vectors.T


# Kinds of grafting: (is it a sum, its rate, its eps, is it corrected).
_GRAFTS = {
    "AdaGrad(epsilon=0.001)": (True, 1.0, 1e-3, False),
    "RMSprop(beta2=0.8, epsilon=0.01)": (False, 0.8, 1e-2, False),
    "Adam(beta2=0.7, epsilon=0.001)": (False, 0.7, 1e-3, True),
}


class _Block:
    """What Shampoo holds of a block."""

    def __init__(self, shape: tuple[int, ...], h: dict[str, Any]) -> None:
        self.h, self.m, self.v = h, np.zeros(shape), np.zeros(shape)
        self.stats = [np.zeros((n, n)) for n in shape]
        self.roots = [np.eye(n) for n in shape]

    def _exponent(self) -> float:
        override, order = self.h["inv_root_override"], len(self.stats)
        if isinstance(override, list):
            override = override[order - 1] if order <= len(override) else 0
        share = 3 if "3*order" in self.h["preconditioner"] else 2
        return -1 / (override or share * order)

    def _filtered(self, g: Array, s: int) -> Array:
        """The momentum of the step, corrected."""
        b1, b3 = self.h["betas"][0], self.h["beta3"]
        b3 = b1 if b3 == -1.0 else b3
        given = b3 * self.m + (1 - b3) * g
        self.m = b1 * self.m + (1 - b1) * g
        return given / (1 - b3 * b1 ** (s - 1)) if self.h["use_bias_correction"] else given

    def _graft(self, m: Array, g: Array, s: int) -> Array:
        if self.h["grafting"] in (None, "SGD"):
            return m
        is_sum, beta, eps, corrected = _GRAFTS[self.h["grafting"]]
        self.v = self.v + g**2 if is_sum else beta * self.v + (1 - beta) * g**2
        return m / (np.sqrt(self.v / (1 - beta**s if corrected else 1.0)) + eps)

    def step(self, g: Array, s: int) -> Array:
        """The direction of the s-th update."""
        h, b2 = self.h, self.h["betas"][1]
        fresh = 1.0 if b2 == 1.0 else 1 - b2
        self.stats = [b2 * a + fresh * gram(g, axis) for axis, a in enumerate(self.stats)]
        every, start = h["precondition_frequency"], h["start_preconditioning_step"]
        start = every if start == -1 else start
        if s == start or (s > start and s % every == 0):
            whole = 1 - b2**s if h["use_bias_correction"] and b2 < 1 else 1.0
            self.roots = [_roots(a / whole, h, self._exponent()) for a in self.stats]
        m = self._filtered(g, s)
        a = self._graft(m, g, s)
        if s < start:
            return a
        u = m
        for axis, root in enumerate(self.roots):
            u = along(u, root, axis)
        grafts = h["grafting"] is not None
        return u * np.linalg.norm(a) / (np.linalg.norm(u) + 1e-16) if grafts else u


def shampoo(h: dict[str, Any], rng: np.random.Generator, steps: int) -> Tree:
    """A file's arrays."""
    p, lr, wd = drawn(rng, 1.0), h["lr"], h["weight_decay"]
    kind, out = h["weight_decay_type"], named("p0", p)
    most, keep = h["max_preconditioner_dim"], h["target_parameter_dimensionality"]
    cuts = {name: _cut(shape, most, keep) for name, shape in SHAPES.items()}
    held: dict[str, list[_Block]] = {
        name: [_Block(np.zeros(shape)[own].shape, h) for own in slices]
        for name, (shape, slices) in cuts.items()
    }
    for s in range(1, steps + 1):
        g = drawn(rng, 1.0)
        out |= named(f"g/{s - 1}", g)
        for name, (shape, slices) in cuts.items():
            w = p[name].reshape(shape)
            full = g[name].reshape(shape) + (wd * w if kind == "L2" else 0.0)
            u = np.zeros(shape)
            for own, block in zip(slices, held[name], strict=True):
                u[own] = block.step(full[own], s)
            decay = {"L2": 0.0, "INDEPENDENT": wd / lr}.get(kind, wd)
            p[name] = (w - lr * (u + decay * w)).reshape(SHAPES[name])
        out |= named(f"p/{s - 1}", p)
    return out
