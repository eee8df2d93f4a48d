"""Laws of subspace norms, of the limiter of growth, and of Fira's residual."""

import functools

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

SHAPES = {"tall": (6, 4), "wide": (4, 6), "stack": (2, 3, 5)}
seeds = st.integers(0, 2**32 - 1)
ADAM = {"eps": 1e-6, "debias": False}


@functools.lru_cache
def norm_part(**options):
    return optkit.scale_by_subspace_norm(**options)


@functools.lru_cache
def compiled(tx):
    return jax.jit(tx.update)


def directions(tx, grads):
    """Updates after each step, stacked; equal factories share their compiled update."""
    state, out = tx.init(grads[0]), []
    for g in grads:
        u, state = compiled(tx)(g, state)
        out.append(u)
    return jax.tree.map(lambda *xs: np.stack(xs), *out)


def short_axis(x):
    """The axis that is projected of (fan_in, fan_out)."""
    return -2 if x.shape[-1] >= x.shape[-2] else -1


@given(seeds)
def test_with_all_coordinates_factors_are_those_of_adam(seed):
    grads = gradients(seed, 2, SHAPES)
    got = directions(norm_part(rank=1.0, basis="permutation"), grads)
    adam = directions(optkit.scale_by_adam(**ADAM), grads)
    for name in SHAPES:
        g = np.stack([np.float64(tree[name]) for tree in grads])
        axis = short_axis(g)
        norms = [np.linalg.norm(np.float64(x), axis=axis, keepdims=True) for x in (adam[name], g)]
        np.testing.assert_allclose(got[name], g * norms[0] / norms[1], rtol=2e-4)


@pytest.mark.parametrize("per", ["channel", "matrix"])
@given(seed=seeds)
def test_directions_are_those_of_the_gradient(per, seed):
    grads = gradients(seed, 2, SHAPES)
    got = directions(norm_part(rank=2, per=per), grads)
    for name in SHAPES:
        ratio = got[name] / np.stack([tree[name] for tree in grads])
        axes = (short_axis(ratio),) if per == "channel" else (-2, -1)
        spread = np.ptp(ratio, axis=axes) / np.max(np.abs(ratio), axis=axes)
        assert np.max(spread) < 1e-4
        assert np.all(ratio > 0)


def test_the_projector_is_not_stored():
    (g,) = gradients(0, 1, SHAPES)
    state = optkit.scale_by_subspace_norm(rank=2).init(g)
    assert state.basis == ()


@given(seeds)
def test_growth_is_limited(seed):
    random = np.random.default_rng(seed)
    grads = gradients(seed, 6, SHAPES)
    grads = [jax.tree.map(lambda x: x * np.float32(10 ** random.uniform(-3, 3)), g) for g in grads]
    out = directions(optkit.limit_norm_growth(1.01), grads)
    for name in SHAPES:
        norms = np.linalg.norm(np.float64(out[name]), axis=(-2, -1))
        given_norms = [np.linalg.norm(np.float64(g[name]), axis=(-2, -1)) for g in grads]
        np.testing.assert_allclose(norms[0], given_norms[0], rtol=1e-5)
        for before, after, free in zip(norms[:-1], norms[1:], given_norms[1:], strict=True):
            bound = 1.01 * (before + 1e-8)
            np.testing.assert_allclose(after, np.minimum(free, bound), rtol=1e-4)


def test_a_zero_update_stops_a_matrix_only_where_it_is_official():
    (g,) = gradients(0, 1, {"w": (3, 3)})
    grads = [g, jax.tree.map(np.zeros_like, g), g]
    ours, theirs = (
        directions(optkit.limit_norm_growth(official_zero_norm=flag), grads)["w"]
        for flag in (False, True)
    )
    np.testing.assert_array_equal(ours[2], g["w"])
    np.testing.assert_allclose(np.linalg.norm(theirs[2]), 1.01e-8, rtol=1e-4)


def test_a_matrix_whose_first_gradient_is_zero_is_not_limited_by_it():
    (g,) = gradients(0, 1, {"w": (3, 3)})
    out = directions(optkit.limit_norm_growth(), [jax.tree.map(np.zeros_like, g), g])
    np.testing.assert_array_equal(out["w"][1], g["w"])


@given(seeds)
def test_fira_without_a_rest_is_low_rank(seed):
    """With all directions and the whole inside taken out nothing is left to be added."""
    grads = gradients(seed, 2, SHAPES)
    inner = optkit.scale_by_adam(**ADAM)
    options = {"rank": 1.0, "basis": "orthonormal"}
    fira = directions(optkit.low_rank(inner, residual="norm_scaled", **options), grads)
    plain = directions(optkit.low_rank(inner, **options), grads)
    for name in SHAPES:
        np.testing.assert_allclose(fira[name], plain[name], atol=1e-4)


@given(seeds)
@pytest.mark.slow
def test_the_rest_has_the_length_that_the_inside_got(seed):
    """With an inner factor of 3 the rest is multiplied by 3 too: the gradient, three times."""
    (g,) = gradients(seed, 1, SHAPES)
    tx = optkit.low_rank(optax.scale(3.0), 2, residual="norm_scaled", growth=None)
    u, _ = tx.update(g, tx.init(g))
    for name in SHAPES:
        np.testing.assert_allclose(u[name], 3 * g[name], atol=1e-4)
