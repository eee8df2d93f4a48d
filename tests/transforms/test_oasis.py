"""OASIS: its step sizes by the rule in float64, its laws, and steps that teach nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"w": (3, 4), "b": (5,)}
SEEDS = st.integers(0, 2**32 - 1)
B1, B2, ALPHA, FIRST = 0.3, 0.8, 0.05, 1e-3
TX = optkit.scale_by_oasis(B2, alpha=ALPHA, first_step=FIRST, b1=B1)
STEP = jax.jit(TX.update)


@given(seed=SEEDS)
def test_it_is_the_rule_in_float64(seed):
    grads, before, diagonals = (gradients(seed + i, 6, SHAPES) for i in range(3))
    params = gradients(seed + 3, 1, SHAPES)[0]
    w, d = {k: np.float64(v) for k, v in params.items()}, None
    m, old, eta, theta = dict.fromkeys(w, 0.0), None, FIRST, np.inf
    state = TX.init(params)
    for t, (g, past, h) in enumerate(zip(grads, before, diagonals, strict=True)):
        at = {k: np.float32(v) for k, v in w.items()}
        u, state = STEP(g, state, at, curvature=h, prev_grad=past)
        g, h = ({k: np.float64(v) for k, v in x.items()} for x in (g, h))
        d = h if t == 0 else {k: B2 * d[k] + (1 - B2) * h[k] for k in w}
        dhat = {k: np.maximum(np.abs(d[k]), ALPHA) for k in w}
        if t:
            top = sum(np.sum((at[k] - np.float64(old[k])) ** 2 * dhat[k]) for k in w)
            low = sum(np.sum((g[k] - past[k]) ** 2 / dhat[k]) for k in w)
            new = min(np.sqrt(1 + theta) * eta, 0.5 * np.sqrt(top / low))
            eta, theta = new, new / eta
        m = {k: B1 * m[k] + (1 - B1) * g[k] for k in w}
        for k in w:
            np.testing.assert_allclose(u[k], eta * m[k] / dhat[k], rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(state.step_size, eta, rtol=2e-3)
        old, w = at, {k: w[k] - np.float64(u[k]) for k in w}


SCALE = jnp.array([0.1, 1.0, 30.0, 500.0])


def quadratic(p, size=1.0):
    return size * jnp.sum(SCALE * (p - 1.0) ** 2) / 2


@jax.jit
def path(size, alpha, first_step):
    """Step sizes and parameters of a run on a diagonal quadratic."""
    tx = optkit.oasis(alpha=alpha, first_step=first_step)

    def loss(p):
        return quadratic(p, size)

    def body(carry, _):
        p, state = carry
        u, state = tx.update(jax.grad(loss)(p), state, p, value_fn=loss)
        part = state[0]
        return (p + u, state), (part.step_size, part.growth, p + u)

    p = jnp.array([3.0, -2.0, 0.5, 7.0])
    return jax.lax.scan(body, (p, tx.init(p)), length=30)[1]


@pytest.mark.parametrize("first_step", [1e-6, 1e-1])
def test_a_diagonal_quadratic_is_solved_with_steps_of_a_half(first_step):
    eta, growth, p = path(1.0, 1e-2, first_step)
    np.testing.assert_allclose(eta[5:10], 0.5, rtol=1e-3)
    np.testing.assert_allclose(p[-1], 1.0, atol=1e-4)
    bound = np.sqrt(1 + np.float64(growth[1:-1])) * eta[1:-1]
    assert np.all(eta[2:] <= bound * (1 + 1e-5))


def test_the_unit_of_the_loss_does_not_matter():
    one, other = path(1.0, 1e-2, 1e-6), path(64.0, 0.64, 1e-6)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a[:10], b[:10], rtol=1e-5)


def test_a_gradient_that_does_not_change_lets_steps_grow_and_rest_lets_them_be():
    tx = optkit.scale_by_oasis(first_step=0.5, alpha=1.0)
    g, zero = jnp.ones(3), jnp.zeros(3)
    p, state = zero, tx.init(zero)
    sizes = []
    for move in (1.0, 1.0, 1.0, 0.0, 1.0):
        u, state = tx.update(g, state, p, curvature=zero, prev_grad=g)
        p = p - move * u
        sizes.append(float(state.step_size))
    grown = 0.5 * np.sqrt(2)  # the second growth is infinite: nothing is known yet
    np.testing.assert_allclose(sizes[:3], [0.5, 0.5, grown], rtol=1e-6)
    assert sizes[3] > sizes[2] and sizes[4] == sizes[3]
    u, state = tx.update(zero, state, p, curvature=zero, prev_grad=zero)
    assert np.all(np.isfinite(u)) and np.isfinite(state.step_size)


def test_a_fixed_rate_keeps_the_diagonal_alone():
    tx = optkit.oasis(0.1, adaptive=False, alpha=0.5)
    g, p = jnp.array([1.0, 2.0]), jnp.zeros(2)
    u, state = tx.update(g, tx.init(p), p, curvature=jnp.array([-4.0, 0.1]))
    np.testing.assert_allclose(u, [-0.1 / 4, -0.2 / 0.5], rtol=1e-6)
    assert state[0].last is None and state[0].momentum is None


def test_gradients_may_come_from_a_function():
    p = jnp.array([3.0, -2.0, 0.5, 7.0])
    tx = optkit.oasis()
    state = {"one": tx.init(p), "other": tx.init(p)}
    for _ in range(3):
        g = jax.grad(quadratic)(p)
        u, state["one"] = tx.update(g, state["one"], p, value_fn=quadratic)
        again, state["other"] = tx.update(
            g, state["other"], p, prev_grad=jax.grad(quadratic), curvature=SCALE
        )
        np.testing.assert_allclose(u, again, rtol=1e-5)
        p = p + u


def test_what_is_missing_is_told():
    tx, p = optkit.oasis(), {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="value_fn=lambda p"):
        tx.update(p, tx.init(p), p)
    with pytest.raises(ValueError, match="value_fn="):
        tx.update(p, tx.init(p), p, curvature=p)
    with pytest.raises(ValueError, match="w: in the updates, not in the prev_grad"):
        tx.update(p, tx.init(p), p, curvature=p, prev_grad={"v": jnp.ones(2)})
