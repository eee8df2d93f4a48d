import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.linalg import frobenius_norm
from optkit.linalg.norms import accumulation_dtype

NORM = jax.jit(frobenius_norm)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e18, 1e30])
def test_any_scale(scale):
    x = np.random.default_rng(0).standard_normal((2, 3, 5)).astype(np.float32)
    expected = np.linalg.norm(x.astype(np.float64), axis=(-2, -1), keepdims=True) * scale
    chex.assert_trees_all_close(np.asarray(NORM(x * np.float32(scale))) / scale, expected / scale)


def test_shapes_and_dtypes():
    x = jnp.ones((2, 3, 4), jnp.bfloat16)
    chex.assert_shape(frobenius_norm(x), (2, 1, 1))
    chex.assert_shape(frobenius_norm(x, keepdims=False), (2,))
    assert frobenius_norm(x).dtype == jnp.bfloat16
    chex.assert_trees_all_equal(frobenius_norm(jnp.ones((2, 0, 4))), jnp.zeros((2, 1, 1)))
    assert frobenius_norm(jnp.ones((0, 3, 4))).shape == (0, 1, 1)
    assert accumulation_dtype(jnp.float16) == jnp.float32


def test_zero_has_norm_and_gradient_zero():
    zero = jnp.zeros((3, 4))
    assert float(NORM(zero)[0, 0]) == 0.0
    gradient = jax.grad(lambda x: frobenius_norm(x, keepdims=False))
    chex.assert_trees_all_equal(gradient(zero), zero)
    x = jnp.arange(1.0, 13.0).reshape(3, 4)
    chex.assert_trees_all_close(gradient(x), x / jnp.linalg.norm(x), rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_stays_visible(bad):
    x = np.ones((2, 2), np.float32)
    x[0, 1] = bad
    assert not np.isfinite(np.asarray(NORM(x))).any()


def test_subnormals_are_harmless():
    assert np.isfinite(np.asarray(NORM(np.full((2, 2), 1e-41, np.float32)))).all()


def test_errors():
    with pytest.raises(ValueError, match="got shape \\(3,\\)"):
        frobenius_norm(jnp.ones(3))
    with pytest.raises(TypeError, match="int32"):
        frobenius_norm(jnp.ones((3, 3), jnp.int32))
