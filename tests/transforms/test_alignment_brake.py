"""Braked momentum, and what it is good for: gradients that arrive late."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import directions, gradients, run

SHAPES = {"kernel": (4, 3), "bias": (3,)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 7, SHAPES)


def oracle(grads, b1, rho, axis):
    """Velocities after each step; axis None has one cosine for the array."""
    v, out = np.zeros(grads[0].shape), []
    for g in np.float64(grads):
        below = np.linalg.norm(g, axis=axis, keepdims=True) * np.linalg.norm(
            v, axis=axis, keepdims=True
        )
        cosine = np.sum(g * v, axis, keepdims=True) / np.where(below > 0, below, 1.0)
        v = b1 * v + (1 - rho * cosine) * g
        out.append(v)
    return np.stack(out)


@functools.partial(jax.jit, static_argnames="per")
def velocities(grads, b1, rho, per):
    return directions(optkit.alignment_brake(b1, rho=rho, per=per), grads)


@given(b1=st.floats(0.0, 0.99), rho=st.floats(0.0, 3.0), seed=st.integers(0, 20))
def test_one_cosine_a_leaf_a_row_or_for_all(b1, rho, seed):
    grads = gradients(seed, 4, SHAPES)
    leaf, row, whole = (velocities(grads, b1, rho, per) for per in ("leaf", "row", "global"))
    kernels, biases = (np.stack([g[name] for g in grads]) for name in ("kernel", "bias"))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(leaf["kernel"], oracle(kernels, b1, rho, None))
    close(leaf["bias"], oracle(biases, b1, rho, None))
    close(row["kernel"], oracle(kernels, b1, rho, 0))  # what feeds one output: a column in Flax
    close(row["bias"], leaf["bias"])
    flat = np.concatenate([kernels.reshape(4, -1), biases], 1)
    close(
        np.concatenate([np.asarray(whole["kernel"]).reshape(4, -1), whole["bias"]], 1),
        oracle(flat, b1, rho, None),
    )


def test_without_strength_it_is_a_heavy_ball():
    got = run(optkit.alignment_brake(0.8, rho=0.0), PARAMS, GRADS)[0]
    want = run(optkit.momentum(0.8, kind="heavy_ball"), PARAMS, GRADS)[0]
    chex.assert_trees_all_close(got, want, rtol=1e-6)


@given(rho=st.floats(0.0, 3.0), seed=st.integers(0, 20), size=st.sampled_from([1e-28, 1.0, 1e25]))
def test_the_factor_is_bounded_and_does_not_see_the_scale(rho, seed, size):
    rng = np.random.default_rng(seed)
    first, second = np.float32(rng.standard_normal((2, 5)))
    made = made_gradient(np.float32(size) * first, second, rho)
    assert np.linalg.norm(made) <= (1 + rho + 1e-5) * np.linalg.norm(second)
    assert np.linalg.norm(made) >= (1 - rho - 1e-5) * np.linalg.norm(second)
    np.testing.assert_allclose(made, made_gradient(first, second, rho), rtol=1e-4, atol=1e-5)
    along = made_gradient(np.float32(size) * second, second, rho)
    np.testing.assert_allclose(along, (1 - rho) * second, rtol=1e-5, atol=1e-5)
    against = made_gradient(-np.float32(size) * second, second, rho)
    np.testing.assert_allclose(against, (1 + rho) * second, rtol=1e-5, atol=1e-5)


@jax.jit
def made_gradient(first, second, rho):
    """The second gradient as it is taken in when the velocity is the first."""
    tx = optkit.alignment_brake(0.5, rho=rho, output="gradient")
    _, state = tx.update(first, tx.init(first))
    return tx.update(second, state)[0]


def test_every_matrix_of_a_stack_has_its_own_cosine():
    grads = gradients(3, 4, {"layers/kernel": (2, 3, 4)})
    alone = [[{"kernel": g["layers/kernel"][i]} for g in grads] for i in range(2)]
    stack = directions(optkit.alignment_brake(), grads)["layers/kernel"]
    for i in range(2):
        one = directions(optkit.alignment_brake(), alone[i])["kernel"]
        np.testing.assert_allclose(stack[:, i], one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 3])
def test_gradients_arrive_late_and_nothing_happens_before(steps):
    got = run(optkit.delay_gradients(optkit.adamw(0.1), steps), PARAMS, GRADS)[0]
    params = {name: jnp.asarray(x) for name, x in PARAMS.items()}
    tx = optkit.adamw(0.1)
    state = tx.init(params)
    for t in range(len(GRADS)):
        want = jax.tree.map(jnp.zeros_like, params)
        if t >= steps:
            want, state = tx.update(GRADS[t - steps], state, params)
        chex.assert_trees_all_close(jax.tree.map(lambda x, t=t: x[t], got), want, atol=1e-6)
        params = optax.apply_updates(params, want)


def test_no_delay_is_the_optimizer_itself():
    inner = optkit.adamw(0.1)
    assert optkit.delay_gradients(inner, 0).update is inner.update
    with pytest.raises(ValueError, match=r"steps=-1"):
        optkit.delay_gradients(inner, -1)


CURVATURE = jnp.array([1.0, 0.1, 0.01])
RATES = np.geomspace(2e-3, 0.6, 58)  # a tenth from one to the next


@functools.partial(jax.jit, static_argnums=0)
def ends(delay, rates, strengths):
    """Loss over the first one after 600 steps on a quadratic; (strengths, rates)."""

    def end(rho, rate):
        inner = optkit.descend(optkit.alignment_brake(0.9, rho=rho), rate)
        tx = optkit.delay_gradients(inner, delay)

        def step(carry, _):
            x, state = carry
            u, state = tx.update(CURVATURE * x, state, x)
            return (x + u, state), None

        start = jnp.ones(3)
        (x, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=600)
        return jnp.sum(CURVATURE * x * x) / jnp.sum(CURVATURE)

    return jax.vmap(lambda rho: jax.vmap(lambda rate: end(rho, rate))(rates))(strengths)


@pytest.mark.parametrize("delay", [4, 16])
def test_brakes_allow_learning_rates_many_times_as_large_under_delay(delay):
    final = np.asarray(ends(delay, jnp.asarray(RATES, jnp.float32), jnp.array([0.0, 2.0])))
    stable = final < 1.0  # NaN is none
    plain, braked = (RATES[np.argmin(row)] if not row.all() else RATES[-1] for row in stable)
    assert braked > 8 * plain  # measured: 11 and 13 times


def test_a_delayed_network_learns_at_a_rate_at_which_plain_momentum_diverges():
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (64, 8))

    def drawn(first, second):
        shapes = {"first": (8, 16), "second": (16, 2)}
        pairs = zip((first, second), shapes.items(), strict=True)
        return {name: jax.random.normal(key, s) / s[0] ** 0.5 for key, (name, s) in pairs}

    truth, start = drawn(*keys[1:3]), drawn(*keys[3:5])

    def loss(p):
        seen, wanted = (jnp.tanh(x @ q["first"]) @ q["second"] for q in (p, truth))
        return jnp.mean(jnp.square(seen - wanted))

    def end(rho):
        inner = optkit.descend(optkit.alignment_brake(0.9, rho=rho), 0.05)
        tx = optkit.delay_gradients(inner, 8)

        def step(carry, _):
            p, state = carry
            u, state = tx.update(jax.grad(loss)(p), state, p)
            return (optax.apply_updates(p, u), state), None

        return loss(jax.lax.scan(step, (start, tx.init(start)), length=300)[0][0])

    plain, braked = jax.jit(jax.vmap(end))(jnp.array([0.0, 2.0]))
    assert not plain < loss(start)
    assert braked < 0.05 * loss(start)
