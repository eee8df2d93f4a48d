"""Steps of one length over all parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"kernel": (3, 2), "bias": (4,)}
PARAMS = gradients(8, 1, SHAPES)[0]
GRADS = gradients(7, 5, SHAPES)


def lengths(updates):
    flat = [np.float64(x).reshape(len(x), -1) for x in jax.tree.leaves(updates)]
    return np.linalg.norm(np.concatenate(flat, 1), axis=1)


@jax.jit
def moved(rate, size, grads):
    scaled = jax.tree.map(lambda g: size * g, grads)
    steps = [jax.tree.map(lambda x, t=t: x[t], scaled) for t in range(len(GRADS))]
    return run(optkit.normalized_momentum(rate, b1=0.8, eps=0.0), PARAMS, steps)[0]


STACKED = jax.tree.map(lambda *x: np.stack(x), *GRADS)


@given(rate=st.floats(1e-3, 1.0), size=st.sampled_from([1e-28, 1e-3, 1e25]))
def test_every_step_is_as_long_as_the_learning_rate_at_any_scale(rate, size):
    plain = moved(rate, 1.0, STACKED)
    np.testing.assert_allclose(lengths(plain), rate, rtol=1e-5)
    scaled = moved(rate, np.float32(size), STACKED)
    for name, x in plain.items():
        np.testing.assert_allclose(scaled[name], x, atol=1e-5 * rate)


def test_the_norm_is_that_of_all_leaves():
    m = {name: 0.1 * np.float64(x) for name, x in GRADS[0].items()}
    norm = np.sqrt(sum(np.sum(x * x) for x in m.values()))
    got = run(optkit.normalized_momentum(0.5), PARAMS, GRADS[:1])[0]
    for name, x in m.items():
        np.testing.assert_allclose(got[name][0], -0.5 * x / norm, rtol=1e-5)


def test_it_converges_where_descent_of_the_same_rate_diverges():
    """x**4 far from its minimum: the curvature grows with the gradient."""

    def run_from(tx):
        def step(carry, t):
            x, state = carry
            u, state = tx.update(4 * x**3, state, x)
            return (x + u, state), None

        x = jnp.array([20.0])
        return jax.lax.scan(step, (x, tx.init(x)), jnp.arange(400))[0][0]

    def falling(t):
        return 0.5 / jnp.sqrt(1.0 + t)

    plain = optkit.descend(optkit.momentum(0.9), falling)
    ours, theirs = jax.jit(
        lambda: (run_from(optkit.normalized_momentum(falling, b1=0.9)), run_from(plain))
    )()
    assert abs(float(ours[0])) < 2.0
    assert not abs(float(theirs[0])) < 20.0


def test_a_negative_eps_is_refused():
    with pytest.raises(ValueError, match=r"eps=-1\.0"):
        optkit.normalized_momentum(0.1, eps=-1.0)
