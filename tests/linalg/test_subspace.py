"""Orthonormal bases and the power iteration, on panels whose answer is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import orthonormalize, power_iteration

EPS = float(np.finfo(np.float32).eps)
METHODS = ["qr", "cqr", "rcqr"]
# (300, 20): enough rows for a sketch. Few shapes, so that few programs are compiled.
SHAPES = [(6, 6), (9, 4), (5, 1), (300, 20), (2, 3, 7, 4)]
methods, shapes, seeds = (
    st.sampled_from(METHODS),
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
)


@functools.partial(jax.jit, static_argnums=1)
def basis(y, method):
    return orthonormalize(y, method)


def exact(y):
    """P of the QR decomposition in float64, signs chosen so that R has a positive diagonal."""
    p, r = np.linalg.qr(np.float64(y))
    return p * np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]


def turned(rng, shape):
    return np.linalg.qr(rng.standard_normal(shape))[0]


def panel(rng, shape, condition):
    """A panel of known condition number, in float32."""
    values = np.geomspace(1.0, 1.0 / condition, shape[-1])
    square = (*shape[:-2], shape[-1], shape[-1])
    return np.float32(turned(rng, shape) * values @ turned(rng, square))


def orthogonality(p):
    p = np.float64(p)
    return np.max(np.abs(np.swapaxes(p, -1, -2) @ p - np.eye(p.shape[-1])))


@given(methods, shapes, seeds, st.floats(0.0, 3.0))
def test_the_basis_is_that_of_the_qr_decomposition(method, shape, seed, digits):
    y = panel(np.random.default_rng(seed), shape, 10.0**digits)
    p = basis(y, method)
    assert orthogonality(p) < 2e-5
    # The basis is as sensitive as the panel is ill-conditioned.
    np.testing.assert_allclose(p, exact(y), atol=50 * EPS * 10.0**digits)
    projected = np.float64(p) @ (np.swapaxes(np.float64(p), -1, -2) @ y)
    np.testing.assert_allclose(projected, y, atol=2e-5)


@given(methods, shapes, seeds)
def test_lengths_of_columns_do_not_matter_and_signs_follow(method, shape, seed):
    rng = np.random.default_rng(seed)
    y = panel(rng, shape, 10.0)
    lengths = 10.0 ** rng.uniform(-15, 15, shape[-1])
    signs = np.sign(rng.standard_normal(shape[-1]))
    moved = basis(np.float32(y * lengths * signs), method)
    np.testing.assert_allclose(moved, np.asarray(basis(y, method)) * signs, atol=2e-5)


@given(methods, st.sampled_from([(12, 6), (300, 20)]), seeds, st.sampled_from([1e-30, 1.0, 1e30]))
def test_dependent_columns_are_zero(method, shape, seed, scale):
    rng = np.random.default_rng(seed)
    y = panel(rng, shape, 10.0)
    dead = np.zeros(shape[-1], bool)
    for j in range(1, shape[-1]):
        if rng.random() < 0.4:
            dead[j] = True
            y[:, j] = y[:, :j] @ rng.uniform(-1, 1, j) * rng.choice([0.0, 1.0])
    p = np.asarray(basis(np.float32(y * scale), method))
    assert not np.any(p[:, dead])
    np.testing.assert_allclose(p[:, ~dead], exact(y[:, ~dead]), atol=1e-4)
    assert orthogonality(p[:, ~dead]) < 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_zero_stays_zero_and_nan_is_seen(method):
    assert not np.any(basis(np.zeros((2, 300, 20), np.float32), method))
    y = panel(np.random.default_rng(0), (300, 20), 2.0)
    y[3, 1] = np.nan
    assert np.any(np.isnan(basis(y, method)))


@pytest.mark.parametrize("method", METHODS)
def test_columns_behind_a_dependent_one_keep_what_they_have(method):
    """Reflections take the first axis for the direction of a zero column: the next one is there."""
    y = np.array([[0, 2, 1], [0, 0, 0], [0, 0, 3], [0, 0, 0]], np.float32)
    want = [[0, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(basis(y, method), want, atol=1e-6)


def test_the_sketch_does_not_show():
    y = panel(np.random.default_rng(1), (300, 20), 100.0)
    keys = [jax.random.key(seed) for seed in range(2)]
    one, two = (orthonormalize(y, "rcqr", key=key) for key in keys)
    assert not np.array_equal(one, two)  # it is there
    np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.sweep
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bit_panels_are_worked_on_in_float32(method, dtype):
    y = jnp.asarray(panel(np.random.default_rng(2), (9, 4), 5.0), dtype)
    p = orthonormalize(y, method)
    assert p.dtype == dtype
    want = orthonormalize(y.astype(jnp.float32), method).astype(dtype)
    np.testing.assert_array_equal(np.float32(p), np.float32(want))


@pytest.mark.parametrize("shape", [(4, 0), (0, 0), (0, 5, 2)])
def test_panels_without_entries(shape):
    assert orthonormalize(jnp.zeros(shape)).shape == shape


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"at least as many rows as columns, got shape \(2, 3\)"):
        orthonormalize(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="'lq'"):
        orthonormalize(jnp.ones((3, 2)), "lq")
    with pytest.raises(TypeError, match="int32"):
        orthonormalize(jnp.ones((3, 2), jnp.int32))


@given(methods, seeds, st.sampled_from([1e-25, 1.0, 1e15]), st.sampled_from([1, 3]))
def test_a_matrix_of_low_rank_is_found_whole(method, seed, scale, iterations):
    rng = np.random.default_rng(seed)
    a = turned(rng, (11, 3)) * [3.0, 2.0, 1.0] @ turned(rng, (7, 3)).T
    q = np.float32(rng.standard_normal((7, 4)))
    p, r = power_iteration(jnp.float32(a * scale), q, iterations, method)
    np.testing.assert_allclose(np.float64(p) @ np.float64(r).T / scale, a, atol=1e-5)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_each_iteration_turns_towards_the_leading_direction(iterations):
    """For A = diag(1, s) and q = (1, t) the tangent of the angle is t s^(2k-1) after k."""
    s, t = 0.7, 3.0
    p, r = power_iteration(jnp.diag(jnp.array([1.0, s])), jnp.array([[1.0], [t]]), iterations)
    assert float(p[1, 0] / p[0, 0]) == pytest.approx(t * s ** (2 * iterations - 1), rel=1e-5)
    np.testing.assert_allclose(r, np.diag([1.0, s]) @ np.asarray(p), rtol=1e-6)


def test_powers_do_not_overflow():
    a = jnp.diag(jnp.array([1e12, 1e11, 1e10]))
    p, r = power_iteration(a, jnp.ones((3, 3)), 8)
    assert np.all(np.isfinite(p)) and np.all(np.isfinite(r))
    assert orthogonality(p[:, :1]) < 1e-6
