"""Two gradients of which the second must not undo the first."""

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
SEED = st.integers(0, 50)
SIZE = st.sampled_from([1e-30, 1e-3, 1.0, 1e25])


def flat(tree):
    return np.concatenate([np.float64(x).ravel() for x in jax.tree.leaves(tree)])


@jax.jit
def away(u, r):
    return optkit.project_away(u, r, eps=0.0), optkit.project_away(u, r, scope="leaf", eps=0.0)


@given(seed=SEED, size=SIZE)
def test_what_is_left_is_perpendicular_and_the_scale_of_the_reference_is_nothing(seed, size):
    u, r = gradients(seed, 2, SHAPES)
    scaled = jax.tree.map(lambda x: np.float32(size) * x, r)
    whole, each = away(u, scaled)
    want = flat(u) - flat(r) * (flat(u) @ flat(r)) / (flat(r) @ flat(r))
    np.testing.assert_allclose(flat(whole), want, atol=2e-6)
    for name, x in u.items():
        w, v = x.astype(np.float64), r[name].astype(np.float64)
        np.testing.assert_allclose(each[name], w - v * np.sum(w * v) / np.sum(v * v), atol=2e-6)


@given(seed=SEED, size=SIZE)
def test_perpendicular_gradients_pass(seed, size):
    u, r = gradients(seed, 2, SHAPES)
    whole, _ = away(u, r)
    big = jax.tree.map(lambda x: np.float32(size) * np.asarray(x), whole)
    again, _ = away(big, r)
    np.testing.assert_allclose(flat(again) / size, flat(whole), atol=2e-6)


def test_a_reference_of_0_takes_nothing_away_and_a_small_one_little():
    u, r = gradients(3, 2, SHAPES)
    zeros = jax.tree.map(np.zeros_like, r)
    for scope in ("global", "leaf"):
        chex.assert_trees_all_equal(optkit.project_away(u, zeros, scope=scope), u)
    small = jax.tree.map(lambda x: np.float32(1e-6) * x, r)
    got = optkit.project_away(u, small, eps=1e-10)
    k = (flat(u) @ flat(small)) / 1e-10
    np.testing.assert_allclose(flat(got), flat(u) - k * flat(small), atol=1e-6)


def test_weights_do_not_grow_along_themselves():
    u, p = gradients(4, 2, SHAPES)
    tx = optkit.normal_plane(of="params", scope="leaf")
    out, _ = tx.update(u, tx.init(p), p)
    for name, x in out.items():
        assert abs(float(jnp.sum(x * p[name]))) < 1e-5


def test_the_first_goal_falls_as_if_the_second_were_not_there():
    """To first order, for conflicting gradients; their sum makes the first goal rise."""
    a, b = jnp.array([1.0, 0.2]), jnp.array([-3.0, 1.0])
    f, h = (lambda x: jnp.sum(a * x), lambda x: jnp.sum(b * x) + jnp.sum(x * x) / 2)
    x, lr = jnp.array([0.3, -0.2]), 1e-2
    tx = optax.chain(optkit.normal_plane(), optax.sgd(lr))
    g = jax.grad(f)(x)
    u, _ = tx.update(jax.grad(h)(x), tx.init(x), x, reference=g)
    alone, both = x - lr * g, x - lr * g + u
    np.testing.assert_allclose(f(both), f(alone), atol=1e-7)
    assert h(both) < h(alone)
    assert f(x - lr * (g + jax.grad(h)(x))) > f(x)


def test_what_is_missing_or_does_not_fit_is_named():
    u, r = gradients(5, 2, SHAPES)
    tx = optkit.normal_plane()
    with pytest.raises(ValueError, match=r"tx\.update\(grads, state, params, reference=other\)"):
        tx.update(u, tx.init(u))
    with pytest.raises(ValueError, match="bias"):
        optkit.project_away(u, {"kernel": r["kernel"]})
    with pytest.raises(ValueError, match=r"kernel: shape \(3, 2\)"):
        optkit.project_away(u, r | {"kernel": r["bias"]})
    with pytest.raises(ValueError, match="scope='tree'"):
        optkit.project_away(u, r, scope="tree")
    with pytest.raises(ValueError, match="of='me'"):
        optkit.normal_plane("me")


def test_a_bfloat16_gradient_stays_one_and_masked_leaves_are_passed_over():
    u = {"a": jnp.ones(3, jnp.bfloat16), "b": None, "none": jnp.zeros(0)}
    out = optkit.project_away(u, {"a": jnp.array([1.0, 0.0, 0.0]), "b": None, "none": jnp.ones(0)})
    assert out["a"].dtype == jnp.bfloat16 and out["b"] is None
    assert out["a"].tolist() == [0.0, 1.0, 1.0]
