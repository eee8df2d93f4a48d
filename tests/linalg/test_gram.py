from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import (
    COEFFICIENTS,
    default_resets,
    get_coefficients,
    gram_newton_schulz,
    newton_schulz,
    reset_growth,
    tune_resets,
)
from tests.linalg import oracle

# Without a reset, with one, and where no small number of resets would do.
FLOAT32_SETS = ["jordan", "quintic_you", "polar_express_1p05", "cans", "deepseek_v4"]


@cache
def gram(name="jordan", **options):
    return jax.jit(partial(gram_newton_schulz, coefficients=name, **options))


@cache
def standard(name="jordan", **options):
    return jax.jit(partial(newton_schulz, coefficients=name, **options))


def well_conditioned(m, n, seed=0):
    sigma = np.linspace(0.3, 1, min(m, n))
    return oracle.with_spectrum(sigma, m, n, seed).astype(np.float32)


@pytest.mark.parametrize("name", ["jordan", "cubic5"])
@pytest.mark.parametrize("resets", [(), (1,), (2,), (4,), (1, 3), (1, 2, 3, 4)])
def test_same_as_the_standard_form(name, resets):
    x = well_conditioned(6, 10)
    chex.assert_trees_all_close(gram(name, resets=resets)(x), standard(name)(x), atol=2e-5)


@given(st.sets(st.integers(0, 7), max_size=3), st.sampled_from([(4, 9), (9, 4), (2, 4, 7)]))
def test_any_resets(resets, shape):
    x = np.stack([well_conditioned(*shape[-2:], seed=i) for i in range(shape[0])])
    x = x if len(shape) == 3 else x[0]
    y = gram_newton_schulz(x, resets=tuple(resets))
    chex.assert_trees_all_close(y, standard()(x), atol=2e-5)


@pytest.mark.parametrize("name", FLOAT32_SETS)
@pytest.mark.parametrize("kind", ["ill", "low rank"])
def test_default_resets_keep_float32_accurate(name, kind):
    entry = COEFFICIENTS[name]
    sigma = np.logspace(0, -4, 16) if kind == "ill" else np.repeat([1.0, 0.0], [5, 11])
    x = oracle.with_spectrum(sigma, 16, 32).astype(np.float32)
    want = oracle.newton_schulz(x, entry.expand(), margin=entry.margin)
    reference = np.max(np.abs(np.asarray(standard(name)(x)) - want))
    error = np.max(np.abs(np.asarray(gram(name)(x)) - want))
    assert error < max(2e-3, 4 * reference)


@pytest.mark.parametrize("name", ["jordan", "polar_express_1p05"])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_default_resets_keep_half_precision_finite(name, dtype):
    entry = COEFFICIENTS[name]
    for sigma in (np.logspace(0, -4, 16), np.repeat([1.0, 0.0], [5, 11]), np.eye(16)[0]):
        x = oracle.with_spectrum(sigma, 16, 32).astype(np.float32)
        want = oracle.newton_schulz(x, entry.expand(), margin=entry.margin)
        other = np.max(np.abs(np.asarray(standard(name, compute_dtype=dtype)(x)) - want))
        error = np.max(np.abs(np.asarray(gram(name, compute_dtype=dtype)(x)) - want))
        assert error < max(0.1, 3 * other)


def test_tuner_finds_the_published_reset():
    assert tune_resets("polar_express_1p05") == (2,)
    assert tune_resets("jordan", count=0, delta=6e-8) == ()
    rows = get_coefficients("polar_express_1p05")
    assert reset_growth(rows, (2,), 4e-4) < 100 < 1e8 < reset_growth(rows, (), 4e-4)
    with pytest.raises(ValueError, match=r"with 0 resets the growth is .* allow more"):
        tune_resets("polar_express_1p05", count=0)
    with pytest.raises(ValueError, match="5 steps have room for 4 resets, got count=5"):
        tune_resets("jordan", count=5)
    with pytest.raises(ValueError, match="0 steps have room for 0 resets"):
        tune_resets("jordan", 0, count=1)


def test_default_resets():
    jordan, express = get_coefficients("jordan"), get_coefficients("polar_express_1p05")
    assert default_resets(jordan, jnp.float32) == ()
    assert default_resets(express, jnp.float16) == (2,)
    assert default_resets(express, jnp.float64) == ()
    assert default_resets((), jnp.float32) == ()
    assert default_resets(get_coefficients("polar_express"), jnp.bfloat16) is None


def test_square_and_unsafe_take_the_standard_form():
    x = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    chex.assert_trees_all_equal(gram(resets=(2,))(x), standard()(x))
    wide = jnp.asarray(np.random.default_rng(0).standard_normal((5, 8)), jnp.bfloat16)
    chex.assert_trees_all_equal(gram("polar_express")(wide), standard("polar_express")(wide))


@pytest.mark.parametrize("precondition", ["frobenius", "spectral", "schatten", "aol"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_shares_the_normalisation(precondition, scale):
    x = well_conditioned(4, 7) * np.float32(scale)
    chex.assert_trees_all_close(
        gram(precondition=precondition)(x), standard(precondition=precondition)(x), atol=2e-5
    )


def test_edges():
    assert gram()(jnp.zeros((0, 3))).shape == (0, 3)
    chex.assert_trees_all_equal(gram()(jnp.zeros((2, 3, 4))), jnp.zeros((2, 3, 4)))
    x = well_conditioned(3, 7)
    chex.assert_trees_all_close(gram(steps=0)(x), x / np.linalg.norm(x), rtol=1e-6)
    row = np.ones((1, 4), np.float32)
    chex.assert_trees_all_close(gram()(row), standard()(row), atol=1e-5)
    half = jnp.asarray(x, jnp.bfloat16)
    assert gram()(half).dtype == jnp.bfloat16
    chex.assert_tree_all_finite(jax.grad(lambda x: gram_newton_schulz(x)[0, 0])(x))
    with pytest.raises(ValueError, match="got \\[-1\\]"):
        gram_newton_schulz(x, resets=(-1,))
    with pytest.raises(ValueError, match="precondition='aol'"):
        gram_newton_schulz(x, "aol_flash")
