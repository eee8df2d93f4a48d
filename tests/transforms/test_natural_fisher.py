"""Laws of the natural gradient of the last gradients."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"w": (3, 4), "stack": (2, 2, 3), "bias": (5,)}
TX = {history: optkit.scale_by_natural_fisher(history, damping=0.5) for history in (1, 3)}
UPDATE = {history: jax.jit(tx.update) for history, tx in TX.items()}


@pytest.mark.parametrize("history", TX)
@given(seed=st.integers(0, 2**32 - 1))
def test_it_is_the_dense_solution(history, seed):
    grads = gradients(seed, 5, SHAPES)
    state = TX[history].init(grads[0])
    for t, g in enumerate(grads):
        u, state = UPDATE[history](g, state)
        seen = grads[max(0, t + 1 - history) : t + 1]
        for name, shape in SHAPES.items():
            size = int(np.prod(shape[-2:]))
            h = np.stack([np.float64(x[name]).reshape(-1, size) for x in seen])
            for index in range(h.shape[1]):
                dense = 0.5 * np.eye(size) + h[:, index].T @ h[:, index]
                want = np.linalg.solve(dense, h[-1, index])
                got = np.asarray(u[name]).reshape(-1, size)[index]
                np.testing.assert_allclose(got, want, atol=2e-5)


def test_one_gradient_is_only_rescaled_and_zeros_stay():
    (g,) = gradients(0, 1, SHAPES)
    u, state = UPDATE[1](g, TX[1].init(g))
    w = np.float64(g["w"])
    np.testing.assert_allclose(u["w"], w / (0.5 + np.sum(w**2)), rtol=1e-5)
    u, _ = UPDATE[1](jax.tree.map(np.zeros_like, g), state)
    assert all(not np.any(x) for x in u.values())
