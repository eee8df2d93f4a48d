import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optkit.linalg import polar
from tests.linalg import oracle

METHODS = ["svd", "qdwh"]
POLAR = jax.jit(polar, static_argnums=1)
SEEDS = st.integers(0, 10**6)


def with_spectra(shape, seed):
    """Matrices of singular values between 0.1 and 1, some of them equal, in float64."""
    random, (*batch, m, n) = np.random.default_rng(seed), shape
    out = []
    for i in range(int(np.prod(batch))):
        sigma = random.choice(random.uniform(0.1, 1.0, min(m, n)), min(m, n))
        out.append(oracle.with_spectrum(sigma, m, n, seed=seed + 2 * i))
    return np.reshape(out, shape)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 3), (2, 3, 4, 5)])
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, power=st.sampled_from([-30, 0, 30]))
def test_orthogonal_factor(method, shape, seed, power):
    x = with_spectra(shape, seed)
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    y = POLAR((x * 10.0**power).astype(np.float32), method)
    np.testing.assert_allclose(y, u @ vt, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_zero_and_empty(method):
    x = jnp.stack([jnp.zeros((3, 4)), jnp.eye(3, 4)])
    chex.assert_trees_all_close(polar(x, method), x, atol=1e-6)
    assert polar(jnp.zeros((0, 3)), method).shape == (0, 3)
    assert polar(jnp.ones((2, 3), jnp.bfloat16), method).dtype == jnp.bfloat16


def _loss(x, weight, method):
    return jnp.sum(weight * polar(x, method))


LOSS, GRADIENT = (jax.jit(f, static_argnums=2) for f in (_loss, jax.grad(_loss)))


@pytest.mark.parametrize(
    ("method", "shape"),
    [("svd", (3, 5)), ("svd", (5, 3)), ("svd", (4, 4)), ("svd", (2, 3, 4)), ("qdwh", (3, 5))],
)
@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_derivative(method, shape, seed):
    with jax.enable_x64(True):
        x = jnp.asarray(with_spectra(shape, seed))
        weight, direction = np.random.default_rng(seed + 1).standard_normal((2, *shape))
        ahead, behind = (LOSS(x + h * direction, weight, method) for h in (1e-6, -1e-6))
        got = jnp.sum(GRADIENT(x, weight, method) * direction)
        scale = np.linalg.norm(GRADIENT(x, weight, method)) * np.linalg.norm(direction)
        np.testing.assert_allclose(got, (ahead - behind) / 2e-6, rtol=0, atol=1e-7 * scale)


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
