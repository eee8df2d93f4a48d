"""Weight prediction: laws that tie it to the base optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit

START = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.7, -0.1])}


def loss(params):
    return jnp.sum(jnp.cosh(params["w"])) + jnp.sum(params["b"] ** 2 * params["w"][0])


def trained(tx, predict, steps=6):
    """Parameters after each step, gradients taken where ``predict`` says."""

    @jax.jit
    def go(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(loss)(predict(params, state))
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    return go(START)


def assert_equal(got, want, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), got, want)


@pytest.mark.parametrize(
    ("tx", "direction"),
    [(optkit.adamw(0.05), None), (optkit.lion(0.02), "sign"), (optax.lion(0.02), None)],
    ids=["adamw", "lion", "optax.lion"],
)
def test_zero_steps_ahead_is_the_base_optimizer(tx, direction):
    here = trained(tx, lambda p, s: optkit.predict_weights(p, s, 0.05, 0.0, direction=direction))
    assert_equal(here, trained(tx, lambda p, s: p), rtol=0)
    _, state = tx.update(jax.grad(loss)(START), tx.init(START), START)
    ahead = optkit.predict_weights(START, state, 0.05, 2.0, direction=direction)
    # All three rules go by the sign after one update.
    want = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), START, jax.grad(loss)(START))
    assert_equal(ahead, want)


@pytest.mark.parametrize("how", ["predict", "optkit", "coast"])
def test_a_heavy_ball_with_the_steps_of_its_momentum_is_nesterov(how):
    """In the variable at which the gradient is taken, the method is Sutskever's form."""
    mu, rate = 0.8, 0.03
    tx = optax.sgd(rate, momentum=mu)
    if how == "optkit":
        tx = optkit.descend(optkit.momentum(mu, kind="heavy_ball"), rate)
    predict = {
        "predict": lambda p, s: optkit.predict_weights(p, s, rate, mu),
        "optkit": lambda p, s: optkit.predict_weights(p, s, None, mu, direction="momentum"),
        "coast": lambda p, s: optkit.coast_weights(tx, p, s),
    }[how]
    got = trained(tx, predict)
    p, v = START, jax.tree.map(jnp.zeros_like, START)
    for t in range(6):
        ahead = jax.tree.map(lambda p, v: p + mu * v, p, v)
        v = jax.tree.map(lambda v, g: mu * v - rate * g, v, jax.grad(loss)(ahead))
        p = jax.tree.map(jnp.add, p, v)
        assert_equal(jax.tree.map(lambda x, t=t: x[t], got), p)


def test_a_constant_rate_predicts_the_last_update_again():
    tx = optax.sgd(0.1, momentum=0.9)
    state, params = tx.init(START), START
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    got = optkit.predict_weights(params, state, 0.1, 3.0)
    assert_equal(got, jax.tree.map(lambda p, u: p + 3.0 * u, params, updates))


def test_before_the_first_update_nothing_is_predicted():
    for tx, options in ((optkit.adamw(0.1), {"eps": 0.0}), (optax.adam(0.1), {"learning_rate": 1})):
        assert_equal(optkit.predict_weights(START, tx.init(START), **options), START, rtol=0)


def test_dtypes_are_those_of_the_parameters():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), START)
    tx = optkit.adamw(0.1)
    _, state = tx.update(params, tx.init(params), params)
    for ahead in (optkit.predict_weights(params, state), optkit.coast_weights(tx, params, state)):
        assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(ahead))
        assert float(jnp.abs(ahead["w"] - params["w"]).max()) > 0.05


def test_what_does_not_tell_a_direction_is_refused():
    momentum = optkit.signum(0.1).init(START)
    with pytest.raises(ValueError, match='give direction="momentum"'):
        optkit.predict_weights(START, momentum)
    with pytest.raises(ValueError, match="and has none; give direction=function"):
        optkit.predict_weights(START, optax.sgd(0.1).init(START), 0.1)
    with pytest.raises(ValueError, match="has ScaleByAdamState, ScaleByAdamState"):
        optkit.predict_weights(START, (optax.adam(0.1).init(START),) * 2, 0.1)
    with pytest.raises(ValueError, match='"adam" needs two moments, not MomentumState'):
        optkit.predict_weights(START, momentum, direction="adam")
    with pytest.raises(ValueError, match="w: shape"):
        shorter = {**START, "w": jnp.zeros(3)}
        optkit.predict_weights(START, momentum, direction=lambda state: shorter)
    with pytest.raises(KeyError, match="learning_rate"):
        optkit.predict_weights(START, optax.adam(0.1).init(START))
