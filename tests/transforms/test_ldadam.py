"""Laws of LDAdam's direction, and one step of it against NumPy."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"tall": (6, 4), "wide": (4, 6), "stack": (2, 3, 5)}
seeds = st.integers(0, 2**32 - 1)
PART = optkit.scale_by_ldadam(0.8, 0.95, rank=2, rho=0.6)
UPDATE = jax.jit(PART.update)
WHOLE = optkit.scale_by_ldadam(0.8, 0.95, rank=1.0, error_feedback=True)
WHOLE_UPDATE = jax.jit(WHOLE.update)


def short_first(name, x):
    x = np.float64(x)
    return np.swapaxes(x, -1, -2) if name == "tall" else x


def transposed(x):
    return np.swapaxes(x, -1, -2)


@given(seeds)
def test_bases_are_orthonormal_and_hold_the_update(seed):
    state = PART.init(gradients(seed, 1, SHAPES)[0])
    for g in gradients(seed, 3, SHAPES):
        u, state = UPDATE(g, state)
        for name in SHAPES:
            p = np.float64(state.basis[name])
            np.testing.assert_allclose(
                transposed(p) @ p, np.broadcast_to(np.eye(2), (*p.shape[:-2], 2, 2)), atol=1e-5
            )
            out = short_first(name, transposed(np.float64(u[name])))
            out = out if out.shape[-2] == p.shape[-2] else transposed(out)
            np.testing.assert_allclose(p @ (transposed(p) @ out), out, atol=1e-4)


@given(seeds)
def test_all_directions_leave_no_error(seed):
    state = WHOLE.init(gradients(seed, 1, SHAPES)[0])
    for g in gradients(seed, 3, SHAPES):
        _, state = WHOLE_UPDATE(g, state)
        for name in SHAPES:
            assert np.max(np.abs(state.error[name])) < 2e-4


@given(seeds)
def test_what_is_projected_and_the_error_are_the_gradient_at_first(seed):
    (g,) = gradients(seed, 1, SHAPES)
    _, state = UPDATE(g, PART.init(g))
    for name in SHAPES:
        p, m = np.float64(state.basis[name]), np.float64(state.mu[name])
        error = np.float64(state.error[name])
        inside = p @ m / 0.2
        inside = inside if inside.shape == error.shape else transposed(inside)
        np.testing.assert_allclose(error + inside, g[name], atol=1e-4)


def test_a_matrix_that_begins_with_zeros_finds_a_basis():
    (g,) = gradients(0, 1, SHAPES)
    state = PART.init(g)
    for x in (jax.tree.map(np.zeros_like, g), g, g):
        u, state = UPDATE(x, state)
    for name in SHAPES:
        assert np.linalg.matrix_rank(np.asarray(state.basis[name])).min() == 2
        assert np.all(np.any(np.asarray(u[name]) != 0, axis=(-2, -1)))
