"""CLASSP: AdaGrad as a special case, what lies below the threshold, and its official reading."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"w": (3, 2), "b": (4,)}
GRADS, PARAMS = gradients(0, 5, SHAPES), gradients(1, 1, SHAPES)[0]


def steps(tx, grads=GRADS):
    return run(tx, PARAMS, grads)[1]


def same(got, want, rtol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, want)


def test_without_threshold_and_with_squares_it_is_adagrad():
    direction = optax.scale_by_rss(initial_accumulator_value=1e-2, eps=0.0)
    adagrad = optax.chain(direction, optax.scale(-0.1))
    same(steps(optkit.classp(0.1, threshold=0.0, power=2.0, eps=1e-2)), steps(adagrad), 1e-6)


def test_below_the_threshold_nothing_moves_and_nothing_is_summed():
    tx = optkit.classp(0.1, threshold=0.49, power=3.0)
    params, state, total = PARAMS, tx.init(PARAMS), 0.0
    signs = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]], np.float32)
    sizes = np.array([0.0, 0.1, 0.69, 0.71, 1.0, 20.0], np.float32)
    for seed in range(4):
        w = np.random.default_rng(seed).permutation(sizes).reshape(3, 2) * signs
        grads = {**GRADS[0], "w": w}
        updates, state = tx.update(grads, state, params)
        after = optax.apply_updates(params, updates)
        small = np.abs(grads["w"]) < 0.7
        assert np.array_equal(np.asarray(after["w"] == params["w"]), small)
        sums = optax.tree.get(state, "total")["w"]
        assert np.array_equal(np.asarray(sums == total), small) and np.all(sums >= total)
        params, total = after, sums


def test_powers_of_one_gradient_give_its_sign():
    for power in (0.5, 1.0, 2.0, 3.5):
        out, _ = (tx := optkit.scale_by_gradient_sum(power, eps=0.0)).update(
            GRADS[0], tx.init(PARAMS)
        )
        same(out, jax.tree.map(np.sign, GRADS[0]), 1e-5)


def test_the_official_threshold_is_a_switch():
    unscaled = {"scaling": False, "compat": "official"}
    same(steps(optkit.classp(0.1, threshold=0.99, **unscaled)), steps(optax.sgd(0.1)), 1e-6)
    closed = steps(optkit.classp(0.1, threshold=1.0, **unscaled))
    jax.tree.map(lambda run, p: np.testing.assert_array_equal(run[-1], p), closed, PARAMS)
    by_one = steps(optkit.classp(0.1, threshold=0.0, power=1.0))
    same(steps(optkit.classp(0.1, threshold=0.0, power=1.0, compat="official")), by_one, 0)


def test_the_sum_is_kept_without_scaling():
    tx = optkit.classp(0.1, threshold=0.0, scaling=False)
    _, state = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    same(optax.tree.get(state, "total"), jax.tree.map(np.abs, GRADS[0]), 0)


def test_wrong_values_are_answered():
    with pytest.raises(ValueError, match="power=0 has no root"):
        optkit.classp(power=0)
    with pytest.raises(ValueError, match="compat='offical'"):
        optkit.threshold_gate(compat="offical")


def test_small_gradients_pass_a_threshold_of_zero():
    out, _ = (tx := optkit.threshold_gate(0.0)).update(jnp.array([1e-30, 0.0]), tx.init(None))
    assert out.tolist() == [np.float32(1e-30), 0.0]


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
