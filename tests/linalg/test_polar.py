import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.linalg import polar
from tests.linalg import oracle

METHODS = ["svd", "qdwh"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 3), (2, 3, 4, 5)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_orthogonal_factor(method, shape, scale):
    x = np.random.default_rng(0).standard_normal(shape)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    y = jax.jit(polar, static_argnums=1)((x * scale).astype(np.float32), method)
    np.testing.assert_allclose(y, u @ vt, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_empty(method):
    x = jnp.stack([jnp.zeros((3, 4)), jnp.eye(3, 4)])
    chex.assert_trees_all_close(polar(x, method), x, atol=1e-6)
    assert polar(jnp.zeros((0, 3)), method).shape == (0, 3)
    assert polar(jnp.ones((2, 3), jnp.bfloat16), method).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("method", "shape"),
    [("svd", (3, 5)), ("svd", (5, 3)), ("svd", (4, 4)), ("svd", (2, 3, 4)), ("qdwh", (3, 5))],
)
def test_derivative(method, shape):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).standard_normal(shape))
        weight, direction = np.random.default_rng(1).standard_normal((2, *shape))
        loss = jax.jit(lambda x: jnp.sum(weight * polar(x, method)))
        slope = (loss(x + 1e-6 * direction) - loss(x - 1e-6 * direction)) / 2e-6
        got = jnp.sum(jax.jit(jax.grad(loss))(x) * direction)
        np.testing.assert_allclose(got, slope, rtol=1e-5, atol=1e-7)


def test_derivative_for_repeated_and_null_singular_values():
    gradient = jax.grad(lambda x: polar(x)[0, 1])(jnp.eye(3))
    expected = np.zeros((3, 3))
    expected[0, 1], expected[1, 0] = 0.5, -0.5
    chex.assert_trees_all_close(np.asarray(gradient), expected.astype(np.float32), atol=1e-6)
    low = oracle.with_spectrum([1.0, 1.0, 0.0], 3, 4).astype(np.float32)
    chex.assert_tree_all_finite(jax.grad(lambda x: polar(x).sum())(low))
    chex.assert_trees_all_equal(
        jax.grad(lambda x: polar(x).sum())(jnp.zeros((2, 3))), jnp.zeros((2, 3))
    )


def test_errors():
    with pytest.raises(ValueError, match=r"method must be one of .* 'eig'"):
        polar(jnp.eye(2), "eig")
    with pytest.raises(ValueError, match="polar works on matrices"):
        polar(jnp.ones(2))
