"""Solvers over nodes in NumPy float64, one node after the other, and files of them."""

from typing import Any

import numpy as np
from scipy.linalg import expm

NAMES = ("X", "X_tilde", "Y", "Y_tilde", "Z", "Z_tilde")


def proxskip_vip(
    matrix: np.ndarray, shift: np.ndarray, start: np.ndarray, coins: Any, hyper: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Points and controls after each step, (steps, nodes, d)."""
    gamma, p, nodes = hyper["gamma"], hyper["prob"], len(start)
    z, h, points, controls = start.copy(), np.zeros_like(start), [], []
    for coin in coins:
        u = np.array([z[i] - gamma * (matrix[i] @ z[i] + shift[i] - h[i]) for i in range(nodes)])
        if coin:
            mean = sum(u[i] - gamma / p * h[i] for i in range(nodes)) / nodes
            z = np.array([mean] * nodes)
            h = h + p / gamma * (z - u)
        else:
            z = u
        points.append(z.copy())
        controls.append(h.copy())
    return np.array(points), np.array(controls)


def flow(mu: float, smoothness: float) -> np.ndarray:
    """The matrix that a node's six vectors follow."""
    nu = mu / 2
    s = np.sqrt(nu / smoothness)
    a = np.zeros((6, 6))
    a[0, :2] = -s / 8, s / 8
    a[1, :2] = s / 8, -s / 8
    a[2, 2:4] = -s / 4, s / 4
    a[3, [1, 2, 4]] = -nu / (2 * s), -1 / (2 * s), -1 / (2 * s)
    a[4, 4:] = -s / 4, s / 4
    a[5, 4:] = s / 8, -s / 8
    return a


def dadao(
    data: np.ndarray, labels: np.ndarray, x0: np.ndarray, events: np.ndarray, hyper: dict[str, Any]
) -> np.ndarray:
    """The six vectors of all nodes after each event, (events, 6, nodes, d)."""
    mu, smoothness, chi = hyper["mu"], hyper["L"], hyper["chi1"]
    nu = mu / 2
    s = np.sqrt(nu / smoothness)
    v, last, out = np.zeros((6, *x0.shape)), np.zeros(len(x0)), []
    v[0] = x0
    for time, is_gradient, i, j in events:
        i, j = int(i), int(j)
        for node in (i,) if is_gradient else (i, j):
            v[:, node] = expm(flow(mu, smoothness) * (time - last[node])) @ v[:, node]
            last[node] = time
        if is_gradient:
            residual = data[i] @ v[0, i] - labels[i, :, 0]
            r = 2 / len(data[i]) * data[i].T @ residual - nu * v[0, i] - v[3, i]
            v[0, i] -= r / (4 * smoothness)
            v[1, i] -= r / (4 * np.sqrt(smoothness * nu))
            v[3, i] += (s / 4 + 1) * r
        else:
            q = (v[2, i] + v[4, i]) - (v[2, j] + v[4, j])
            v[4, i] -= q / 2
            v[4, j] += q / 2
            v[5, i] -= 2 * chi / s * q
            v[5, j] += 2 * chi / s * q
        out.append(v.copy())
    return np.array(out)


def proxskip_file(hyper: dict[str, Any], nodes: int, steps: int, seed: int) -> dict[str, Any]:
    """A file's arrays."""
    random = np.random.default_rng(seed)
    matrix = np.eye(3) + 0.3 * random.standard_normal((nodes, 3, 3))
    shift, start = random.standard_normal((2, nodes, 3))
    coins = random.binomial(1, hyper["prob"], steps)
    points, controls = proxskip_vip(matrix, shift, start, coins, hyper)
    out = {"M": matrix, "z": shift, "coins": coins, "p0/x": start}
    for t in range(steps):
        out[f"p/{t}/x"], out[f"control/{t}/x"] = points[t], controls[t]
    return out


def dadao_file(hyper: dict[str, Any], nodes: int, count: int, seed: int) -> dict[str, Any]:
    """A file's arrays; messages along a ring."""
    random = np.random.default_rng(seed)
    data = random.standard_normal((nodes, 4, 2))
    labels, x0 = random.standard_normal((nodes, 4, 1)), random.standard_normal((nodes, 2))
    kind, first = random.binomial(1, 0.5, count), random.integers(0, nodes, count)
    second = np.where(kind == 1, -1, (first + 1) % nodes)
    times = np.cumsum(random.exponential(0.2, count))
    events = np.stack([times, kind, first, second], axis=1).astype(np.float64)
    six = dadao(data, labels, x0, events, hyper)
    out = {"data": data, "labels": labels, "x0": x0, "events": events}
    for t in range(count):
        out |= {f"p/{t}/{name}": six[t, k] for k, name in enumerate(NAMES)}
    return out
