"""A linear model whose gradients of examples NumPy writes down, and batches for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PARAMS = {"b": jnp.float32(0.25), "w": jnp.array([0.5, -1.0, 2.0], jnp.float32)}
SIZE = 8


def loss(params: Any, example: Any) -> jax.Array:
    x, y = example
    return 0.5 * jnp.square(jnp.sum(params["w"] * x) + params["b"] - y)


def batch(seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (SIZE, 3) and targets (SIZE,); ``spread`` makes norms differ by powers of ten."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SIZE, 3)) * 10.0 ** rng.uniform(-spread, spread, (SIZE, 1))
    return x.astype(np.float32), rng.standard_normal(SIZE).astype(np.float32)


def gradients(data: Any) -> np.ndarray:
    """Gradients of examples in float64, (SIZE, 4): b first."""
    x, y = (np.float64(part) for part in data)
    w = np.float64(PARAMS["w"])
    error = x @ w + float(PARAMS["b"]) - y
    return error[:, None] * np.concatenate([np.ones((SIZE, 1)), x], axis=1)


def clipped(data: Any, clip: float, mask: Any = None) -> np.ndarray:
    """The sum of clipped gradients, one example after the other."""
    out = np.zeros(4)
    for i, g in enumerate(gradients(data)):
        if mask is None or mask[i]:
            out += g * min(1.0, clip / max(np.linalg.norm(g), 1e-300))
    return out


def flat(tree: Any) -> np.ndarray:
    """All entries, b first."""
    return np.concatenate([np.ravel(np.float64(x)) for x in jax.tree.leaves(tree)])
