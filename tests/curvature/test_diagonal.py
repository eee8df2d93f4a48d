"""Estimates against dense matrices of curvature, and what they do not depend on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit import curvature

KEYS = jax.random.split(jax.random.key(0), 2000)


def logits(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def model(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"w": (2, 3), "v": (3, 4)}
    params = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    return params, jnp.asarray(rng.standard_normal((5, 2)), jnp.float32)


def test_gauss_newton_bartlett_has_the_diagonal_of_gauss_newton_for_its_mean():
    params, x = model()
    estimate = curvature.gauss_newton_bartlett(logits, x)
    mean = jax.jit(
        lambda keys: jax.tree.map(
            lambda h: jnp.mean(h, axis=0), jax.vmap(lambda key: estimate(params, key))(keys)
        )
    )(KEYS)
    jacobian = jax.jacobian(logits)(params, x)
    p = np.float64(jax.nn.softmax(logits(params, x)))
    for name in params:
        j = np.float64(jacobian[name]).reshape(5, 4, -1)
        hessian = np.stack([np.diag(row) - np.outer(row, row) for row in p])
        want = np.einsum("bci,bcd,bdi->i", j, hessian, j) / 5
        got = np.ravel(mean[name])
        assert np.all(got >= 0)
        # The square of a normal number has a deviation of sqrt(2); 2000 draws, 5 deviations.
        np.testing.assert_allclose(got, want, rtol=5 * np.sqrt(2 / 2000) + 0.02, atol=1e-4)


def test_rows_that_do_not_count_change_nothing():
    params, x = model()
    keep = jnp.array([True, True, False, True, False])
    other = jnp.where(keep[:, None], x, 7.0)
    first, second = (
        jax.jit(curvature.gauss_newton_bartlett(logits, rows, where=keep))(params, KEYS[0])
        for rows in (x, other)
    )
    for name in params:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5)


def test_batch_size_and_clip_scale_the_estimate():
    params, x = model()
    plain, tenfold, clipped = (
        jax.jit(curvature.gauss_newton_bartlett(logits, x, **options))(params, KEYS[1])
        for options in ({}, {"batch_size": 50}, {"clip": 1e-3})
    )
    np.testing.assert_allclose(tenfold["w"], 10 * plain["w"], rtol=1e-6)
    norm = np.sqrt(sum(np.sum(h) for h in clipped.values()) / 5)  # of the gradient
    np.testing.assert_allclose(norm, 1e-3, rtol=1e-5)


def quartic(params, scale=1.0):
    return scale * sum(jnp.sum(p**4) for p in jax.tree.leaves(params)) / 12


OF_QUARTIC = jax.jit(curvature.hutchinson(quartic, 2.0))


@given(seed=st.integers(0, 2**32 - 1))
def test_signs_find_a_diagonal_hessian_exactly(seed):
    params, _ = model(seed)
    found = OF_QUARTIC(params, jax.random.key(seed))
    for name, p in params.items():
        np.testing.assert_allclose(found[name], 2 * np.float64(p) ** 2, rtol=1e-5)


def coupled(params):
    return jnp.sum(jnp.sin(params["w"].sum(0) @ params["v"])) + quartic(params), "aux"


def dense_and_exact(params):
    exact = curvature.hessian_diagonal(coupled, has_aux=True)(params, KEYS[0])
    return jax.hessian(lambda p: coupled(p)[0])(params), exact


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_the_mean_of_hutchinsons_estimate_is_the_diagonal(probe):
    params, _ = model()
    dense, exact = jax.jit(dense_and_exact)(params)
    want = {k: np.diag(np.reshape(dense[k][k], (p.size, p.size))) for k, p in params.items()}
    estimate = curvature.hutchinson(coupled, probe=probe, samples=1000, has_aux=True)
    found = jax.jit(estimate)(params, KEYS[2])
    size = max(np.max(np.abs(x)) for x in want.values())
    for name in params:
        np.testing.assert_allclose(np.ravel(exact[name]), want[name], atol=2e-5)
        np.testing.assert_allclose(np.ravel(found[name]), want[name], atol=0.4 * size)
        assert found[name].dtype == exact[name].dtype == jnp.float32


def test_parameters_of_16_bits_have_estimates_of_32():
    params, x = model()
    low = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    for estimate in (
        curvature.gauss_newton_bartlett(logits, x.astype(jnp.bfloat16)),
        curvature.hutchinson(quartic),
        curvature.constant(3.0),
    ):
        shapes = jax.eval_shape(estimate, low, KEYS[0])
        assert {h.dtype for h in shapes.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("options", [{"probe": "uniform"}, {"samples": 0}, {"samples": True}])
def test_wrong_options_are_named(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        curvature.hutchinson(quartic, **options)
