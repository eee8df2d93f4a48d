"""An independent float64 account of the iterations, and matrices with a chosen spectrum."""

import numpy as np


def polynomial(rows, sigma):
    """Image of singular values under the composed odd polynomials."""
    y = np.asarray(sigma, np.float64)
    for a, b, c in rows:
        y = a * y + b * y**3 + c * y**5
    return y


def orthogonal(seed, m, n):
    """Orthonormal rows or columns, (m, n)."""
    tall = np.linalg.qr(np.random.default_rng(seed).standard_normal((max(m, n), min(m, n))))[0]
    return tall if m >= n else tall.T


def with_spectrum(sigma, m, n, seed=0):
    """U diag(sigma) V^T of shape (m, n), in float64."""
    k = min(m, n)
    return (orthogonal(seed, m, k) * np.asarray(sigma)) @ orthogonal(seed + 1, k, n)


def newton_schulz(x, rows, *, eps=0.0, margin=1.0):
    """By the SVD: singular vectors kept, singular values mapped. Batched."""
    x = np.asarray(x, np.float64)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    norm = np.sqrt(np.sum(s * s, axis=-1, keepdims=True))
    divisor = margin * norm + eps
    scaled = np.divide(s, divisor, out=np.zeros_like(s), where=divisor > 0)
    return (u * polynomial(rows, scaled)[..., None, :]) @ vt


def aol(x, rows):
    """Row-preconditioned iteration, term by term."""
    x = np.asarray(x, np.float64)
    if x.shape[0] > x.shape[1]:
        return aol(x.T, rows).T
    x = x / np.sqrt(np.abs(x @ x.T).sum(axis=1, keepdims=True))
    for a, b, c in rows:
        cube = x @ x.T @ x
        x = a * x + b * cube + c * x @ x.T @ cube
    return x
