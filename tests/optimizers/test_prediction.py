"""Weight prediction: laws that tie it to the base optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit

START = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.array([0.7, -0.1])}
SEEDS = st.integers(0, 2**32 - 1)


def start(seed):
    """Numbers that no run below brings near 0, where roundings would show."""
    random = np.random.default_rng(seed)
    return {
        name: np.float32(random.uniform(1, 2, shape) * random.choice([-1, 1], shape))
        for name, shape in {"w": (2, 2), "b": (2,)}.items()
    }


def loss(params):
    return jnp.sum(jnp.cosh(params["w"])) + jnp.sum(params["b"] ** 2 * params["w"][0])


def trained(make, predict, steps=6):
    """A program of the parameters after each step and where its gradient was taken.

    That is where ``predict(tx, params, state, **numbers)`` says.
    """

    @jax.jit
    def go(params, make_numbers, numbers):
        tx = make(**make_numbers)

        def step(carry, _):
            params, state = carry
            ahead = predict(tx, params, state, **numbers)
            updates, state = tx.update(jax.grad(loss)(ahead), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, ahead)

        return jax.lax.scan(step, (params, tx.init(params)), length=steps)[1]

    return go


def assert_equal(got, want, rtol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), got, want)


def ahead_by(direction):
    return lambda tx, p, s, rate, steps: optkit.predict_weights(
        p, s, rate, steps, direction=direction
    )


BASES = {
    "adamw": (lambda rate: optkit.adamw(rate), None),
    "lion": (lambda rate: optkit.lion(rate), "sign"),
    "optax.lion": (lambda rate: optax.lion(rate), None),
}
AHEAD = {name: trained(make, ahead_by(direction)) for name, (make, direction) in BASES.items()}
HERE = {name: trained(make, lambda tx, p, s: p) for name, (make, _) in BASES.items()}


@pytest.mark.parametrize("name", BASES)
@given(SEEDS, st.floats(0.01, 0.1), st.floats(0.0, 4.0))
def test_zero_steps_ahead_is_the_base_optimizer_and_more_go_on_by_as_many(name, seed, rate, steps):
    params = start(seed)
    here = AHEAD[name](params, {"rate": rate}, {"rate": rate, "steps": 0.0})
    assert_equal(here, HERE[name](params, {"rate": rate}, {}), rtol=0)
    after, ahead = AHEAD[name](params, {"rate": rate}, {"rate": rate, "steps": steps})
    # Before the first update nothing is predicted, and after it all three rules go by the sign.
    assert_equal(jax.tree.map(lambda x: x[0], ahead), params, rtol=0)
    first, second = (jax.tree.map(lambda x, i=i: x[i], t) for i, t in ((0, after), (1, ahead)))
    grads = jax.grad(loss)(params)
    want = jax.tree.map(lambda p, g: p - rate * steps * jnp.sign(g), first, grads)
    assert_equal(second, want)


HOW = {
    "predict": (
        lambda mu, rate: optax.sgd(rate, momentum=mu),
        lambda tx, p, s, mu, rate: optkit.predict_weights(p, s, rate, mu),
    ),
    "optkit": (
        lambda mu, rate: optkit.descend(optkit.momentum(mu, kind="heavy_ball"), rate),
        lambda tx, p, s, mu, rate: optkit.predict_weights(p, s, None, mu, direction="momentum"),
    ),
    "coast": (
        lambda mu, rate: optax.sgd(rate, momentum=mu),
        lambda tx, p, s, mu, rate: optkit.coast_weights(tx, p, s),
    ),
}
HEAVY_BALL = {how: trained(*parts) for how, parts in HOW.items()}


@jax.jit
def nesterov(start, mu, rate):
    """Sutskever's form."""

    def step(carry, _):
        p, v = carry
        ahead = jax.tree.map(lambda p, v: p + mu * v, p, v)
        v = jax.tree.map(lambda v, g: mu * v - rate * g, v, jax.grad(loss)(ahead))
        p = jax.tree.map(jnp.add, p, v)
        return (p, v), p

    return jax.lax.scan(step, (start, jax.tree.map(jnp.zeros_like, start)), length=6)[1]


@pytest.mark.parametrize("how", HOW)
@given(SEEDS, st.floats(0.0, 0.9), st.floats(0.001, 0.03))
def test_a_heavy_ball_with_the_steps_of_its_momentum_is_nesterov(how, seed, mu, rate):
    """In the variable at which the gradient is taken."""
    numbers = {"mu": mu, "rate": rate}
    got = HEAVY_BALL[how](start(seed), numbers, numbers)[0]
    assert_equal(got, nesterov(start(seed), mu, rate))


@jax.jit
def predicted(params, numbers, steps):
    """The last update of a heavy ball, and its prediction."""
    tx = optax.sgd(numbers["rate"], momentum=numbers["mu"])
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
    return params, updates, optkit.predict_weights(params, state, numbers["rate"], steps)


@given(SEEDS, st.floats(0.0, 0.9), st.floats(0.001, 0.03), st.floats(0.0, 5.0))
def test_a_constant_rate_predicts_the_last_update_again(seed, mu, rate, steps):
    params, updates, got = predicted(start(seed), {"mu": mu, "rate": rate}, steps)
    assert_equal(got, jax.tree.map(lambda p, u: p + steps * u, params, updates))


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
