"""The coefficient that follows the gradients: its formula, its bounds, and the model behind it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.transforms.adaptive_memory_adam import AdaptiveMemoryAdamState
from tests.transforms.driver import gradients, run

SHAPES = {"a": (3, 2), "b": (5,)}
FIRST, SECOND = gradients(1, 2, SHAPES)
WEIGHTS = st.sampled_from([0.0, 0.1, 2.0])


def adam_state(state):
    is_state = lambda x: isinstance(x, AdaptiveMemoryAdamState)  # noqa: E731
    return next(x for x in jax.tree.leaves(state, is_leaf=is_state) if is_state(x))


@functools.cache
def program():
    """Memory and coefficient after each of some gradients; numbers are arrays inside."""

    def go(grads, b1, lam):
        tx = optkit.adaptive_memory(b1, lam=lam)

        def step(state, g):
            u, state = tx.update(g, state)
            return state, (u, state.beta)

        return jax.lax.scan(step, tx.init(jax.tree.map(lambda x: x[0], grads)), grads)[1]

    return jax.jit(go)


def follow(grads, b1=0.9, lam=0.1):
    stacked = jax.tree.map(lambda *x: np.stack(x), *grads)
    return program()(stacked, jnp.float32(b1), jnp.float32(lam))


def flat(tree, t=None):
    arrays = [x if t is None else x[t] for x in jax.tree.leaves(tree)]
    return np.concatenate([np.float64(x).ravel() for x in arrays])


@given(wanted=st.floats(0.01, 0.88))
def test_without_penalty_it_is_a_quotient_of_norms(wanted):
    """With g = s*d the coefficient is s^2/(1-s)^2, over all leaves together."""
    s = np.float32(np.sqrt(wanted) / (1 + np.sqrt(wanted)))
    u, beta = follow([FIRST, {k: s * g for k, g in FIRST.items()}], lam=0.0)
    assert float(beta[1]) == pytest.approx(wanted, rel=1e-4)
    want = wanted * flat(FIRST) + (1 - wanted) * s * flat(FIRST)
    np.testing.assert_allclose(flat(u, 1), want, rtol=1e-4)


@given(lam=WEIGHTS, size=st.floats(0.02, 3.0), bound=st.sampled_from([0.0, 0.5, 0.95]))
def test_the_published_formula(lam, size, bound):
    second = {k: np.float32(size) * g for k, g in SECOND.items()}
    u, beta = follow([FIRST, second], bound, lam)
    g, d = flat(second), flat(FIRST)
    raw = ((1 + lam) * g @ d - (d - g) @ (g + lam * d)) / ((d - g) @ (d - g))
    want = min(max(raw, 0.0), bound)
    assert float(beta[0]) == 0.0 and float(beta[1]) == pytest.approx(want, rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(flat(u, 0), d)
    new = (want + lam) / (1 + lam) * d + (1 - want) / (1 + lam) * g
    np.testing.assert_allclose(flat(u, 1), new, rtol=1e-3, atol=1e-5)


@given(lam=WEIGHTS, size=st.floats(0.1, 0.8))
def test_the_step_minimises_the_model_of_two_planes(lam, size):
    """With the bound out of the way, no point around the step has a lower model."""
    second = {k: np.float32(size) * (g + 0.3 * SECOND[k]) for k, g in FIRST.items()}
    u, _ = follow([FIRST, second], 1.0 - 1e-6, lam)
    g, d, step = flat(second), flat(FIRST), -flat(u, 1)

    def model(s):
        planes = np.maximum(s @ g, g @ d + s @ d)
        return planes + np.sum(s * s, -1) / 2 + lam * np.sum((s + d) ** 2, -1) / 2

    random = np.random.default_rng(0).standard_normal((200, len(g)))
    for radius in (1e-2, 0.3, 3.0):
        assert model(step) <= np.min(model(step + radius * random)) + 1e-5


@given(power=st.integers(-80, 80))
def test_the_scale_of_gradients_does_not_count(power):
    sizes = (1.0, 0.5, 0.05, 1.0, 0.3)
    grads = [
        {k: np.float32(s) * g for k, g in tree.items()}
        for s, tree in zip(sizes, gradients(3, 5, SHAPES), strict=True)
    ]
    scaled = [{k: np.ldexp(g, power) for k, g in tree.items()} for tree in grads]
    want, got = follow(grads)[1], follow(scaled)[1]
    assert len(set(np.asarray(want).tolist())) > 2
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_its_limits():
    nothing = {k: 0 * g for k, g in FIRST.items()}
    u, beta = follow([nothing, nothing, FIRST], lam=0.1)
    assert np.all(np.isfinite(flat(u))) and not np.any(np.asarray(beta[:2]))
    # Without a gradient only what the penalty holds is kept.
    u, beta = follow([FIRST, nothing], lam=0.25)
    assert float(beta[1]) == 0.0
    np.testing.assert_allclose(flat(u, 1), 0.2 * flat(FIRST), rtol=1e-5)
    # A strong penalty keeps the first direction for ever.
    u, _ = follow([FIRST, SECOND, FIRST, SECOND], lam=1e6)
    np.testing.assert_allclose(flat(u, 3), flat(FIRST), atol=1e-4)
    # A bound of 0 leaves the gradient and, with no penalty, nothing else.
    u, _ = follow([FIRST, SECOND], 0.0, 0.0)
    np.testing.assert_allclose(flat(u, 1), flat(SECOND), rtol=1e-6)


def test_am_msgd_decays_what_its_mask_names():
    tx = optkit.am_msgd(0.5, weight_decay=0.2, mask=lambda path, leaf: leaf.ndim > 1)
    out = run(tx, FIRST, [{k: 0 * g for k, g in FIRST.items()}])[1]
    np.testing.assert_allclose(out["a"][0], 0.9 * FIRST["a"], rtol=1e-6)
    np.testing.assert_allclose(out["b"][0], FIRST["b"])


def alike(steps):
    """Gradients that agree but for some noise: the coefficient is at its bound."""
    return [
        {k: np.float32(2.0 * np.sign(FIRST[k]) + 0.2 * g) for k, g in tree.items()}
        for tree in gradients(5, steps, SHAPES)
    ]


def test_without_penalty_and_at_its_bound_am_adamw_is_adamw():
    options = {"b1": 0.8, "b2": 0.9, "eps": 1e-6, "weight_decay": 0.2}
    grads = alike(8)
    _, got, state = run(optkit.am_adamw(0.01, lam=0.0, **options), FIRST, grads)
    _, want, _ = run(optkit.adamw(0.01, **options), FIRST, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
    np.testing.assert_allclose(adam_state(state).coefficients[0], 0.8**8, rtol=1e-5)


@functools.cache
def _betas(decay):
    tx = optkit.am_adamw(lambda t: 0.01 * jnp.where(t == 3, 0.0, 1.0 + t), weight_decay=decay)

    @jax.jit
    def go(params, grads):
        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = jax.tree.map(jnp.add, params, u)
            return (params, state), (u, adam_state(state).coefficients[1])

        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    return go


@given(sizes=st.lists(st.sampled_from([0.0, 1e-30, 0.03, 1.0, 20.0, 1e25]), min_size=6, max_size=6))
def test_coefficients_stay_within_their_bounds(sizes):
    grads = [
        {k: np.float32(s) * g for k, g in tree.items()}
        for s, tree in zip(sizes, gradients(7, 6, SHAPES), strict=True)
    ]
    stacked = jax.tree.map(lambda *x: np.stack(x), *grads)
    for decay in (0.0, 0.1):
        u, beta = _betas(decay)(FIRST, stacked)
        assert np.all(np.isfinite(flat(u))) and np.all(np.isfinite(beta))
        assert np.all(beta >= 0) and np.all(beta <= np.float32(0.89))
        assert np.all(beta[0] == np.float32(0.89)) and not np.any(flat(u, 3))  # a rate of 0


def test_a_leaf_without_gradient_keeps_nothing():
    grads = [{"a": FIRST["a"], "b": 0 * FIRST["b"]}, {"a": 0 * FIRST["a"], "b": 0 * FIRST["b"]}]
    stacked = jax.tree.map(lambda *x: np.stack(x), *grads)
    _, beta = _betas(0.0)(FIRST, stacked)
    assert beta[0].tolist() == [np.float32(0.89)] * 2 and not np.any(np.asarray(beta[1]))


def test_leaves_have_coefficients_of_their_own():
    sizes = ((1.0, 1.0), (0.1, 3.0), (0.5, 0.02), (1.0, 0.5))
    grads = [
        {"a": np.float32(x) * g["a"], "b": np.float32(y) * g["b"]}
        for (x, y), g in zip(sizes, gradients(9, 4, SHAPES), strict=True)
    ]
    tx = optkit.am_adamw(0.02)
    together = run(tx, FIRST, grads)[1]
    for name in SHAPES:
        alone = run(tx, {name: FIRST[name]}, [{name: g[name]} for g in grads])[1]
        np.testing.assert_allclose(together[name], alone[name], atol=1e-6)


def test_wrong_use_is_answered():
    with pytest.raises(ValueError, match=r"lam=-0\.1 is below 0"):
        optkit.am_adamw(0.1, lam=-0.1)
    with pytest.raises(ValueError, match=r"b1=1\.0 is outside \[0\.0, 1\.0\)"):
        optkit.adaptive_memory(1.0)
    tx = optkit.am_adamw(0.1)
    with pytest.raises(ValueError, match="c: in the updates, not in the state"):
        tx.update({"c": FIRST["a"]}, tx.init({"a": FIRST["a"]}))
