"""Inputs, shared programs, and the definition written out in float64 NumPy."""

from functools import cache

import jax
import numpy as np

from optkit.fast_weights import FastWeights, lact
from optkit.linalg import COEFFICIENTS
from tests.linalg import oracle

DK, DH, DV, CHUNK = 4, 6, 3, 5
YOU = COEFFICIENTS["quintic_you"].rows
FORMS = [
    (muon, momentum, prenorm)
    for muon in (False, True)
    for momentum in (False, True)
    for prenorm in (False, True)
]


def sequence(tokens, batch=(2,), seed=0, dtype=np.float32, wide=False):
    """Weights, queries, keys, values, rates and momenta, keys and queries of length 1."""
    rng = np.random.default_rng(seed)

    def unit(size):
        x = rng.standard_normal((*batch, tokens, size))
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    shapes = ((DH, DK), (DV, DH), (DH, DK))
    weights = FastWeights(*[rng.standard_normal((*batch, *s)).astype(dtype) for s in shapes])
    q, k = unit(DK), unit(DK)
    v = rng.standard_normal((*batch, tokens, DV))
    sizes = (DK, DH, DK) if wide else (1, 1, 1)
    lr = tuple(rng.uniform(0.2, 0.8, (*batch, tokens, size)).astype(dtype) for size in sizes)
    momentum = rng.uniform(0.1, 0.9, (*batch, tokens, 1)).astype(dtype)
    return weights, q.astype(dtype), k.astype(dtype), v.astype(dtype), lr, momentum


@cache
def jitted(momentum=True, **options):
    def run(weights, q, k, v, lr, mu):
        return lact(weights, q, k, v, lr, mu if momentum else None, **options)

    return jax.jit(run)


@cache
def gradient_of(**options):
    return jax.jit(jax.grad(lambda *inputs: (lact(*inputs, **options) ** 2).sum()))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def one_sequence(weights, q, k, v, lr, mu, chunk, muon, momentum, prenorm, rows=YOU):
    """The definition, token by token, for one sequence in float64."""
    w = [np.asarray(x, np.float64) for x in weights]
    main, norms = list(w), [np.linalg.norm(x, axis=1, keepdims=True) for x in w]
    before = [np.zeros_like(x) for x in w]
    out = []
    for start in range(0, len(q), chunk):
        here = range(start, min(start + chunk, len(q)))
        for t in here:
            g = w[0] @ q[t]
            out.append(w[1] @ (g * sigmoid(g) * (w[2] @ q[t])))
        if here.stop == len(q):
            break
        d = [np.zeros_like(x) for x in w]
        for t in here:
            g, h, b = w[0] @ k[t], w[2] @ k[t], w[1].T @ v[t]
            s = sigmoid(g)
            d[0] += np.outer(b * h * s * (1 + g * (1 - s)), lr[0][t] * k[t])
            d[1] += np.outer(v[t], lr[1][t] * g * s * h)
            d[2] += np.outer(b * g * s, lr[2][t] * k[t])
        if momentum:
            d = before = [x + np.mean(mu[here]) * y for x, y in zip(d, before, strict=True)]
        if muon:
            d = [oracle.newton_schulz(x, rows, eps=1e-7) for x in d]
        main = [x + y for x, y in zip(main if prenorm else w, d, strict=True)]
        w = [
            x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5) * n
            for x, n in zip(main, norms, strict=True)
        ]
    return np.stack(out)


def slow(weights, q, k, v, lr, mu, **options):
    """The definition for each sequence of a batch."""
    rows = [jax.tree.map(lambda x, i=i: x[i], (weights, q, k, v, lr, mu)) for i in range(len(q))]
    return np.stack([one_sequence(*row, **options) for row in rows])
