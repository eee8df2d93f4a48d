"""Balanced rows and columns, and matrices of a given RMS."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit import linalg

SHAPES = [(4, 7), (7, 4), (5, 5), (1, 6)]


def oracle(x, p, order, exponent, iterations):
    """Float64 loops."""
    x = np.array(x, np.float64)
    for _ in range(iterations):
        if order == "simultaneous":
            r = np.linalg.norm(x, p, axis=1) ** exponent
            c = np.linalg.norm(x, p, axis=0) ** exponent
            x = x / r[:, None] / c[None]
            continue
        for axis in (1, 0) if order == "row_col" else (0, 1):
            x = x / np.linalg.norm(x, p, axis=axis, keepdims=True) ** exponent
    return x


def unit(x):
    return np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("order", ["simultaneous", "row_col", "col_row"])
@pytest.mark.parametrize(
    ("p", "exponent", "iterations"),
    [(2.0, 0.5, 1), (1.0, 1.0, 2), (3.0, 0.25, 3), (math.inf, 0.5, 2)],
)
def test_balance_is_its_definition(shape, order, p, exponent, iterations):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    options = {"order": order, "exponent": exponent, "iterations": iterations}
    got = linalg.balance(jnp.asarray(x), p, **options)
    want = oracle(x, p, order, exponent, iterations)
    np.testing.assert_allclose(unit(got), unit(want), atol=2e-6)
    # Norms with an epsilon have the units of x.
    tiny = linalg.balance(jnp.asarray(x), p, eps=1e-20, **options)
    np.testing.assert_allclose(tiny, want, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.floats(-30, 25))
def test_many_iterations_forget_row_and_column_factors(seed, shape, power):
    rng = np.random.default_rng(seed)
    x = np.sign(rng.standard_normal(shape)) * rng.uniform(0.3, 1.0, shape)
    r = 10 ** rng.uniform(-1, 1, (shape[0], 1))
    c = 10 ** rng.uniform(-1, 1, (1, shape[1]))
    plain, scaled = (
        linalg.balance(jnp.asarray(y, jnp.float32), iterations=40)
        for y in (x, 10.0**power * r * x * c)
    )
    np.testing.assert_allclose(unit(scaled), unit(plain), atol=3e-6)
    rows = np.linalg.norm(np.asarray(scaled), axis=1)
    columns = np.linalg.norm(np.asarray(scaled), axis=0)
    np.testing.assert_allclose(rows, rows[0], rtol=1e-4)
    np.testing.assert_allclose(columns, columns[0], rtol=1e-4)


def test_one_pass_of_unbalanced_matrices_improves_their_condition():
    rng = np.random.default_rng(3)
    gains = []
    for _ in range(20):
        x = rng.standard_normal((12, 16))
        x = 10 ** rng.uniform(-1.5, 1.5, (12, 1)) * x * 10 ** rng.uniform(-1.5, 1.5, (1, 16))
        after = np.linalg.cond(np.asarray(linalg.balance(jnp.asarray(x, jnp.float32)), np.float64))
        gains.append(np.linalg.cond(x) / after)
    assert min(gains) > 1.0 and np.median(gains) > 5.0, gains


@given(st.integers(0, 10**6), st.sampled_from(SHAPES), st.floats(-30, 30), st.floats(1e-3, 1e3))
def test_rms_is_as_asked_at_any_scale(seed, shape, power, rms):
    x = (10.0**power * np.random.default_rng(seed).standard_normal((2, *shape))).astype(np.float32)
    out = np.asarray(linalg.to_rms(jnp.asarray(x), rms), np.float64)
    np.testing.assert_allclose(np.sqrt(np.mean(out**2, axis=(1, 2))), rms, rtol=1e-5)
    assert np.all(np.sign(out) == np.sign(x))


@pytest.mark.parametrize("p", [2.0, 1.0, 5.0, math.inf])
def test_zero_lines_zero_matrices_and_empty_ones_stay_so(p):
    x = jnp.zeros((3, 4)).at[0].set(1e-30).at[0, 2].set(0.0)
    for order in ("simultaneous", "row_col", "col_row"):
        out = np.asarray(linalg.balance(x, p, order=order, iterations=3))
        assert np.isfinite(out).all()
        assert np.all((out != 0) == (np.asarray(x) != 0))
    zeros = jnp.zeros((2, 3))
    assert not np.any(linalg.balance(zeros, p)) and not np.any(linalg.to_rms(zeros, 1.0))
    for empty in (jnp.zeros((0, 3)), jnp.zeros((2, 0, 3))):
        assert linalg.balance(empty, p).shape == linalg.to_rms(empty, 1.0).shape == empty.shape


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_16_bits_round_the_result_only(dtype):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((4, 6)), dtype)
    for function in (linalg.balance, lambda y: linalg.to_rms(y, 0.2)):
        low, full = function(x), function(x.astype(jnp.float32))
        assert low.dtype == dtype
        np.testing.assert_array_equal(low, full.astype(dtype))


def test_batches_and_traced_exponents():
    x = jnp.asarray(np.random.default_rng(2).standard_normal((2, 3, 4, 5)), jnp.float32)
    whole = linalg.balance(x, 2.0, iterations=2)
    each = jnp.stack([jnp.stack([linalg.balance(m, 2.0, iterations=2) for m in b]) for b in x])
    np.testing.assert_allclose(whole, each, rtol=1e-6)
    traced = jax.jit(lambda y, p, e: linalg.balance(y, p, exponent=e))(x, 2.0, 0.5)
    np.testing.assert_allclose(traced, linalg.balance(x), rtol=1e-5)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"balance works on matrices .*shape \(3,\)"):
        linalg.balance(jnp.ones(3))
    with pytest.raises(ValueError, match=r"order='rows' is not one of simultaneous"):
        linalg.balance(jnp.ones((2, 2)), order="rows")
