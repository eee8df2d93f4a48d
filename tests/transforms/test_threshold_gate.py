"""CLASSP: AdaGrad as a special case, what lies below the threshold, and its official reading."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import compiled, gradients

SHAPES = {"w": (3, 2), "b": (4,)}
PARAMS = gradients(1, 1, SHAPES)[0]
SEEDS = st.integers(0, 2**32 - 1)
RATES = st.floats(0.01, 1.0)


def total(state):
    return optax.tree.get(state, "total")


def classp(**options):
    return compiled(lambda rate, **numbers: optkit.classp(rate, **numbers, **options), total)


CLASSP, OFFICIAL = classp(), classp(compat="official")
SWITCH = classp(compat="official", scaling=False)


def same(got, want, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, want)


def adagrad(rate, eps):
    return optax.chain(
        optax.scale_by_rss(initial_accumulator_value=eps, eps=0.0), optax.scale(-rate)
    )


ADAGRAD = compiled(adagrad)


@given(SEEDS, RATES, st.floats(1e-4, 1.0))
def test_without_threshold_and_with_squares_it_is_adagrad(seed, rate, eps):
    grads = gradients(seed, 4, SHAPES)
    got = CLASSP(PARAMS, grads, rate=rate, threshold=0.0, power=2.0, eps=eps)[0]
    same(got, ADAGRAD(PARAMS, grads, rate=rate, eps=eps)[0], 1e-6)


@given(SEEDS, st.floats(1e-3, 1e3), st.floats(0.5, 3.5))
def test_below_the_threshold_nothing_moves_and_nothing_is_summed(seed, threshold, power):
    random = np.random.default_rng(seed)
    # Around the root, and far from it.
    sizes = np.sqrt(threshold) * np.array([0.0, 0.1, 0.99, 1.01, 1.4, 20.0])
    grads = [
        {
            k: np.float32(random.choice(sizes, s) * random.choice([-1, 1], s))
            for k, s in SHAPES.items()
        }
        for _ in range(4)
    ]
    _, params, sums = CLASSP(PARAMS, grads, rate=0.1, threshold=threshold, power=power, eps=1e-5)
    for name, start in PARAMS.items():
        small = np.stack([np.abs(g[name]) < np.sqrt(threshold) for g in grads])
        moved = np.diff(params[name], axis=0, prepend=start[None])
        added = np.diff(sums[name], axis=0, prepend=0.0)
        np.testing.assert_array_equal(moved == 0, small)
        np.testing.assert_array_equal(added == 0, small)
        assert np.all(added >= 0)


@given(SEEDS, st.floats(0.5, 3.5), st.integers(-9, 9))
def test_powers_of_one_gradient_give_its_sign_and_its_scale_never_matters(seed, power, exponent):
    grads = gradients(seed, 4, SHAPES)
    scaled = jax.tree.map(lambda g: np.float32(2.0**exponent) * g, grads)
    numbers = {"rate": 1.0, "threshold": 0.0, "power": power, "eps": 0.0}
    got = CLASSP(PARAMS, grads, **numbers)[0]
    same(jax.tree.map(lambda u: u[0], got), jax.tree.map(lambda g: -np.sign(g), grads[0]), 1e-5)
    same(CLASSP(PARAMS, scaled, **numbers)[0], got, 1e-5)


@given(SEEDS, RATES, st.floats(0.0, 0.99), st.floats(1.0, 4.0), st.floats(0.5, 3.5))
def test_the_official_threshold_is_a_switch_and_its_power_does_not_enter_the_sum(
    seed, rate, low, high, power
):
    grads = gradients(seed, 4, SHAPES)
    got, _, sums = SWITCH(PARAMS, grads, rate=rate, threshold=low, power=power)
    for name in SHAPES:
        g = np.stack([g[name] for g in grads])
        np.testing.assert_allclose(got[name], -np.float32(rate) * g, rtol=1e-6)
        np.testing.assert_allclose(sums[name], np.cumsum(np.abs(g), axis=0), rtol=1e-6)
    closed = SWITCH(PARAMS, grads, rate=rate, threshold=high, power=power)
    assert not any(np.any(x) for x in jax.tree.leaves((closed[0], closed[2])))
    one = {"rate": rate, "power": 1.0}
    paper = CLASSP(PARAMS, grads, **one, threshold=0.0, eps=1e-5)[0]
    same(OFFICIAL(PARAMS, grads, **one, threshold=low)[0], paper, 1e-6)


def test_the_sum_is_kept_without_scaling():
    tx, grads = optkit.classp(0.1, threshold=0.0, scaling=False), gradients(0, 1, SHAPES)[0]
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    same(total(state), jax.tree.map(np.abs, grads), 0)


def test_wrong_values_are_answered():
    with pytest.raises(ValueError, match="power=0 has no root"):
        optkit.classp(power=0)
    with pytest.raises(ValueError, match="compat='offical'"):
        optkit.threshold_gate(compat="offical")


def test_a_number_is_a_threshold_of_squares_and_small_gradients_pass_zero():
    out, _ = (tx := optkit.threshold_gate(0.0)).update(jnp.array([1e-30, 0.0]), tx.init(None))
    assert out.tolist() == [np.float32(1e-30), 0.0]
    out, _ = (tx := optkit.threshold_gate(0.49)).update(jnp.array([0.75, -0.5]), tx.init(None))
    assert out.tolist() == [0.75, 0.0]


def test_a_new_task_goes_to_weights_that_were_not_busy():
    """Two inputs that the second task cannot tell apart; the first task had used one of them."""

    @functools.partial(jax.jit, static_argnums=0)
    def train(tx):
        def step(carry, t):
            w, state = carry
            first = t < 200
            x, y = jnp.where(first, jnp.array([1.0, 0.0]), 1.0), jnp.where(first, 2.0, -1.0)
            updates, state = tx.update((w @ x - y) * x, state, w)
            w = optax.apply_updates(w, updates)
            return (w, state), w

        w = jnp.zeros(2)
        return jax.lax.scan(step, (w, tx.init(w)), jnp.arange(400))[1]

    shares = []
    for tx in (optax.sgd(0.1), optkit.classp(0.4, threshold=0.0, power=2.0)):
        run = train(tx)
        np.testing.assert_allclose(run[199], [2.0, 0.0], atol=1e-2)
        np.testing.assert_allclose(run[-1].sum(), -1.0, atol=1e-2)
        shares.append((run[199, 0] - run[-1, 0]) / 3.0)  # of the way, gone by the busy weight
    np.testing.assert_allclose(shares[0], 0.5, atol=1e-2)
    assert 0.0 < shares[1] < 0.45  # a sum of past squares alone protects little
