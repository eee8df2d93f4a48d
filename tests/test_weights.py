"""Weights moved on along the way they came, and how far a score lets them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"kernel": (3, 2), "bias": (4,)}
MOVE = jax.jit(optkit.extrapolate)


@given(seed=st.integers(0, 30), weight=st.floats(-0.9, 20.0))
def test_extrapolating_and_interpolating_back_is_nothing(seed, weight):
    p, r = gradients(seed, 2, SHAPES)
    chex.assert_trees_all_equal(MOVE(p, r, 0.0), p)
    ahead = MOVE(p, r, weight)
    chex.assert_trees_all_close(MOVE(ahead, r, -weight / (1 + weight)), p, atol=2e-5)
    chex.assert_trees_all_close(
        ahead, {k: (1 + weight) * p[k] - weight * r[k] for k in p}, atol=2e-5
    )


def test_dtypes_stay_and_trees_that_differ_are_named():
    low = optkit.extrapolate({"w": jnp.ones(2, jnp.bfloat16)}, {"w": jnp.zeros(2)}, 2.0)["w"]
    assert low.dtype == jnp.bfloat16 and low.tolist() == [3.0, 3.0]
    p, r = gradients(1, 2, SHAPES)
    with pytest.raises(ValueError, match="bias: in the updates, not in the reference"):
        optkit.extrapolate(p, {"kernel": r["kernel"]}, 1.0)
    with pytest.raises(ValueError, match="weight=nan"):
        optkit.extrapolate(p, r, float("nan"))
    with pytest.raises(ValueError, match="is empty"):
        optkit.accept_line_search(lambda p: 0.0, p, r, ())


WEIGHTS = (2.0, 4.0, 6.0, 8.0, 10.0)


@jax.jit
def search(scores):
    """The score of weight w is given for each; p = 1, reference 0, so that params are 1 + w."""

    def score(p):
        return scores[jnp.round((p["w"][0] - 1.0) / 2.0).astype(int)]

    return optkit.accept_line_search(score, {"w": jnp.ones(1)}, {"w": jnp.zeros(1)}, WEIGHTS)


@given(scores=st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_it_stops_at_the_first_that_fails(scores):
    best, reached, tried = scores[0], 0.0, 1
    for weight, found in zip(WEIGHTS, scores[1:], strict=True):
        tried += 1
        if found < best:
            break
        best, reached = found, weight
    got = search(jnp.asarray(scores, jnp.float32))
    assert float(got.score) == best >= scores[0]
    assert float(got.weight) == reached and float(got.params["w"][0]) == 1.0 + reached
    assert int(got.evaluations) == tried


def test_a_score_that_jax_cannot_trace_is_called_from_python():
    p, r = {"w": jnp.ones(2)}, {"w": jnp.zeros(2)}
    seen = []

    def score(p):
        seen.append(float(p["w"][0]))
        return -abs(seen[-1] - 6.0)

    got = optkit.accept_line_search(score, p, r, on_device=False)
    assert (float(got.weight), float(got.score), int(got.evaluations)) == (6.0, -1.0, 5)
    assert seen == [1.0, 3.0, 5.0, 7.0, 9.0]


def test_a_score_that_is_no_number_is_not_accepted():
    got = search(jnp.array([1.0, jnp.nan, 9.0, 9.0, 9.0, 9.0]))
    assert (float(got.weight), float(got.score), int(got.evaluations)) == (0.0, 1.0, 2)


def test_a_steady_way_is_gone_in_fewer_steps():
    """A quadratic of one slow direction: EffOPD at the steps 1, 2, 4, ... against plain descent."""
    goal = jnp.array([20.0, 1.0])
    curvature = jnp.array([0.02, 1.0])

    def loss(p):
        return jnp.sum(curvature * jnp.square(p - goal)) / 2

    tx = optax.sgd(0.5)

    @jax.jit
    def step(p, state):
        u, state = tx.update(jax.grad(loss)(p), state, p)
        return optax.apply_updates(p, u), state

    find = jax.jit(lambda p, old: optkit.accept_line_search(lambda x: -loss(x), p, old))

    def steps(extrapolating):
        p, old = jnp.zeros(2), jnp.zeros(2)
        state = tx.init(p)
        for n in range(1, 400):
            p, state = step(p, state)
            if extrapolating and n & (n - 1) == 0:
                p = find(p, old).params
                old = p
            if loss(p) < 0.1:
                return n
        return 400

    assert 3 * steps(True) < steps(False)


def test_a_collapsed_covariance_is_widened():
    """Neon's toy: a Gaussian, its fit, the narrower fit to the fit's own samples, and the merge."""
    rng = np.random.default_rng(0)
    truth = np.array([[2.0, 0.6], [0.6, 1.0]])

    def fitted(cov, size, shrink=1.0):
        return np.cov(rng.multivariate_normal(np.zeros(2), cov, size).T) * shrink

    model = fitted(truth, 1000, 0.85)  # a generator that has lost some of the spread
    own = fitted(model, 1000, 0.85)
    merged = optkit.extrapolate({"cov": jnp.float32(model)}, {"cov": jnp.float32(own)}, 1.0)["cov"]
    error = [np.linalg.norm(np.asarray(x) - truth) for x in (own, model, merged)]
    assert np.linalg.det(own) < np.linalg.det(model) < np.linalg.det(merged)
    assert error[2] < 0.6 * error[1] < error[0]
