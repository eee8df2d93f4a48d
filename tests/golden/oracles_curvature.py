"""Slow NumPy float64 forms of SOAP, PSGD and OASIS, that write files of other settings."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray
Tree = dict[str, Array]
SHAPES = {"wide": (3, 5), "cube": (2, 3, 2), "bias": (4,)}


def drawn(rng: np.random.Generator, size: float) -> Tree:
    """Float32 numbers, as a file has them."""
    return {
        name: np.float32(size * rng.standard_normal(shape)).astype(np.float64)
        for name, shape in SHAPES.items()
    }


def along(x: Array, matrix: Array, axis: int) -> Array:
    """A tensor multiplied by a matrix along an axis."""
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)


def gram(x: Array, axis: int) -> Array:
    flat = np.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)
    return flat @ flat.T


def named(prefix: str, tree: Mapping[str, Any]) -> Tree:
    return {f"{prefix}/{name}": np.float32(value) for name, value in tree.items()}


# SOAP: the eigenvectors of statistics, followed by QR.


def _merged(shape: tuple[int, ...], most: int) -> tuple[int, ...]:
    """The loop of the reference's ``merge_dims``."""
    out, current = [], 1
    for size in shape:
        if current * size <= most:
            current *= size
        elif current > 1:
            out.append(current)
            current = size
        else:
            out.append(size)
    return tuple([*out, current] if current > 1 or not out else out)


class _Eigenbasis:
    """What SOAP holds of a leaf."""

    def __init__(self, shape: tuple[int, ...], h: dict[str, Any]) -> None:
        self.h, self.n = h, 0
        self.shape = _merged(shape, h["max_precond_dim"]) if h["merge_dims"] else shape
        if len(shape) == 1:
            self.shape = shape
        chosen = len(shape) > 1 or h["precondition_1d"]
        sizes = [n if chosen and n <= h["max_precond_dim"] else 0 for n in self.shape]
        self.stats = [np.zeros((n, n)) for n in sizes]
        self.q: list[Array] = []
        self.m = self.v = np.zeros(self.shape)

    def turned(self, x: Array, *, back: bool = False) -> Array:
        for axis, q in enumerate(self.q):
            x = along(x, q if back else q.T, axis) if q.size else x
        return x

    def grow(self, g: Array) -> None:
        b = self.h["shampoo_beta"] if self.h["shampoo_beta"] >= 0 else self.h["betas"][1]
        self.stats = [
            b * a + (1 - b) * gram(g, axis) if a.size else a for axis, a in enumerate(self.stats)
        ]

    def follow(self) -> None:
        for axis, (a, q) in enumerate(zip(self.stats, self.q, strict=True)):
            if a.size:
                order = np.argsort(-np.diag(q.T @ a @ q))
                self.v = np.take(self.v, order, axis)
                self.q[axis] = np.linalg.qr(a @ q[:, order])[0]

    def step(self, g: Array) -> Array:
        """The change of a parameter, without decay."""
        g, h, leaf = g.reshape(self.shape), self.h, g.shape
        if not self.q:
            self.grow(g)
            self.q = [np.linalg.eigh(a)[1][:, ::-1] for a in self.stats]
            return np.zeros(leaf)
        self.n, (b1, b2) = self.n + 1, h["betas"]
        turned = self.turned(g)
        self.m = b1 * self.m + (1 - b1) * turned
        self.v = b2 * self.v + (1 - b2) * turned**2
        u = self.turned(self.m / (np.sqrt(self.v) + h["eps"]), back=True)
        if h["normalize_grads"]:
            u = u / (1e-30 + np.sqrt(np.mean(u**2)))
        rate = h["lr"]
        if h["correct_bias"]:
            rate *= math.sqrt(1 - b2**self.n) / (1 - b1**self.n)
        self.m = self.turned(self.m, back=True)
        self.grow(g)
        if self.n % h["precondition_frequency"] == 0:
            self.follow()
        self.m = self.turned(self.m)
        return (-rate * u).reshape(leaf)


def soap(h: dict[str, Any], rng: np.random.Generator, steps: int) -> Tree:
    """A file's arrays."""
    p = drawn(rng, 1.0)
    held = {name: _Eigenbasis(shape, h) for name, shape in SHAPES.items()}
    out = named("p0", p)
    for t in range(steps):
        g = drawn(rng, 1.0)
        for name, own in held.items():
            moved = p[name] + own.step(g[name])
            p[name] = moved * (1 - h["lr"] * h["weight_decay"] * (t > 0))
            bases = {f"{name}/{i}": q for i, q in enumerate(own.q) if q.size}
            out |= named(f"Q/{t}", bases)
        vsq = {name: own.v.reshape(SHAPES[name]) for name, own in held.items()}
        out |= named(f"g/{t}", g) | named(f"p/{t}", p) | named(f"vsq/{t}", vsq)
    return out


# PSGD: the whole Kronecker product of a leaf as one matrix.


def _bound(a: Array) -> float:
    """A bound of the spectral norm from below: a step from the longest row."""
    most = np.abs(a).max()
    small = a / most
    x = small[np.argmax((small**2).sum(1))] @ small
    return float(most * np.linalg.norm(small @ (x / np.linalg.norm(x))))


class _Whitening:
    """The factors of a leaf, all of them as matrices."""

    def __init__(self, shape: tuple[int, ...], h: dict[str, Any]) -> None:
        self.h, self.shape = h, shape
        save, longest = h["memory_save_mode"], max(range(len(shape)), key=lambda i: (shape[i], i))
        self.flat = [
            size == 1
            or size > h["max_size_triangular"]
            or len(shape) < h["min_ndim_triangular"]
            or save == "all_diag"
            or (save == "one_diag" and axis == longest)
            for axis, size in enumerate(shape)
        ]
        each = h["preconditioner_init_scale"] ** (1 / len(shape))
        self.q = [each * np.eye(size) for size in shape]

    def whole(self) -> Array:
        out = np.ones((1, 1))
        for q in self.q:
            out = np.kron(out, q)
        return out

    def balance(self) -> None:
        sizes = [np.abs(q).max() for q in self.q]
        mean = math.prod(sizes) ** (1 / len(sizes))
        self.q = [q * mean / size for q, size in zip(self.q, sizes, strict=True)]

    def fit(self, x: Array, v: Array) -> None:
        x = x + math.sqrt(2.0**-23) * np.mean(np.abs(x)) * v
        a = (self.whole() @ x.ravel()).reshape(self.shape)
        b = (np.linalg.inv(self.whole()).T @ v.ravel()).reshape(self.shape)
        rate = self.h["preconditioner_lr"]
        for axis, flat in enumerate(self.flat):
            one, two = gram(a, axis), gram(b, axis)
            if flat:
                over = np.max(np.diag(one + two))
                change = np.diag(np.diag(one - two)) @ self.q[axis] / over
            else:
                change = np.triu(one - two) @ self.q[axis] / _bound(one + two)
            self.q[axis] = self.q[axis] - rate * change

    def direction(self, m: Array) -> Array:
        k = self.whole()
        u = (k.T @ k @ m.ravel()).reshape(self.shape)
        return u / max(1.0, float(np.sqrt(np.mean(u**2))) / 1.1)

    def stored(self) -> list[Array]:
        return [np.diag(q) if flat else q for q, flat in zip(self.q, self.flat, strict=True)]


def _chance(given: Any, s: int) -> float:
    """How often factors are fitted at the s-th update."""
    if not isinstance(given, dict):
        return float(given)
    most, least = given["max_prob"], given["min_prob"]
    return float(np.clip(most * np.exp(-given["decay"] * (s - given["flat_start"])), least, most))


def psgd_kron(h: dict[str, Any], rng: np.random.Generator, steps: int) -> Tree:
    """A file's arrays."""
    p, b1, since = drawn(rng, 1.0), h["b1"], 0
    held = {name: _Whitening(shape, h) for name, shape in SHAPES.items()}
    mu = {name: 0.0 * x for name, x in p.items()}
    out = named("p0", p)
    for t in range(steps):
        g, v, coin = drawn(rng, 1.0), drawn(rng, 1.0), rng.random() < 0.4
        out |= named(f"g/{t}", g)
        mu = {name: b1 * mu[name] + (1 - b1) * g[name] for name in p}
        mean = {name: m / (1 - b1 ** (t + 1)) for name, m in mu.items()}
        since += 1
        if since >= 1 / _chance(h["preconditioner_update_probability"], t + 1):
            since = 0
            out |= named(f"v/{t}", v) | {f"balance/{t}": np.array(coin)}
            for name, own in held.items():
                if coin:
                    own.balance()
                own.fit((mean if h["momentum_into_precond_update"] else g)[name], v[name])
        for name, own in held.items():
            u = own.direction(mean[name])
            p[name] = p[name] - h["learning_rate"] * (u + h["weight_decay"] * p[name])
            out |= named(f"Q/{t}/{name}", {str(i): q for i, q in enumerate(own.stored())})
        out |= named(f"p/{t}", p) | {f"update_counter/{t}": np.array(since, np.int32)}
    return out


# OASIS: a diagonal, and one step size of all leaves.


def oasis(h: dict[str, Any], rng: np.random.Generator, steps: int) -> Tree:
    """A file's arrays; curvatures of both signs, gradients of a hidden diagonal and noise."""
    w, etas, theta = drawn(rng, 1.0), list[float](), math.inf
    hidden, old = {name: np.exp(x) for name, x in drawn(rng, 1.0).items()}, dict(w)
    d, m = ({name: 0.0 * x for name, x in w.items()} for _ in range(2))
    out = named("p0", w)
    for t in range(steps):
        g, sample, noise = drawn(rng, 1.0), drawn(rng, 0.3), drawn(rng, 0.01)
        sample = {name: np.float32(hidden[name] * (0.3 + x)) for name, x in sample.items()}
        b = h["beta2"] if t else 0.0
        d = {name: b * d[name] + (1 - b) * np.float64(x) for name, x in sample.items()}
        under = {name: np.maximum(np.abs(x), h["alpha"]) for name, x in d.items()}
        eta = h["eta0"]
        if t and h["adaptive"]:
            moved = {name: w[name] - old[name] for name in w}
            size = math.sqrt(sum(np.sum(x**2) for x in moved.values()))
            turn = {name: hidden[name] * moved[name] + size * noise[name] for name in w}
            before = {name: np.float32(g[name] - x) for name, x in turn.items()}
            out |= named(f"gprev/{t}", before)
            top = sum(np.sum(moved[name] ** 2 * under[name]) for name in w)
            low = sum(np.sum((g[name] - before[name]) ** 2 / under[name]) for name in w)
            grown = math.sqrt(1 + theta) * etas[-1]
            eta = min(grown, 0.5 * math.sqrt(top / low))
            theta = eta / etas[-1]
        old, etas, rate = dict(w), [*etas, eta], h["lr"]
        for name in w:
            m[name] = h["beta1"] * m[name] + (1 - h["beta1"]) * g[name]
            step = eta * m[name] / under[name] + h["weight_decay"] * w[name]
            w[name] = w[name] - rate * step
        out |= named(f"g/{t}", g) | named(f"h/{t}", sample)
        out |= named(f"p/{t}", w) | named(f"D/{t}", d)
    return out | {"eta": np.array(etas)}
