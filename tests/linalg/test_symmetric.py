from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import gram_newton_schulz, newton_schulz, orthogonal_factor, symmetric_product


def gaussian(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


PRODUCT = jax.jit(symmetric_product, static_argnames="blocks")


@given(st.sampled_from([1, 2, 7]), st.integers(1, 4), st.sampled_from([(), (2, 3)]))
def test_product(m, blocks, batch):
    x = gaussian(*batch, m, 4)
    got = np.asarray(PRODUCT(x, x, blocks=blocks))
    np.testing.assert_allclose(got, x @ np.swapaxes(x, -1, -2), atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_bitwise_symmetric(blocks):
    x = jnp.asarray(gaussian(160, 16))
    got = np.asarray(symmetric_product(x, x, blocks=blocks))
    np.testing.assert_allclose(got, x @ x.T, atol=1e-4)
    np.testing.assert_array_equal(got, got.T)


def test_fewer_flops():
    x = jax.ShapeDtypeStruct((192, 192), jnp.float32)
    whole, panels = (
        jax.jit(partial(symmetric_product, blocks=n)).lower(x, x).compile().cost_analysis()["flops"]
        for n in (1, 3)
    )
    np.testing.assert_allclose(panels / whole, 2 / 3, atol=0.01)


@pytest.mark.parametrize("function", [newton_schulz, gram_newton_schulz])
@pytest.mark.parametrize("shape", [(7, 12), (2, 9, 5)])
def test_same_factor(function, shape):
    x = gaussian(*shape)
    whole = jax.jit(function)(x)
    panels = jax.jit(partial(function, blocks=3))(x)
    chex.assert_trees_all_close(panels, whole, atol=2e-5)


@pytest.mark.parametrize("resets", [(2,), (1, 2, 4)])
def test_resets(resets):
    x = gaussian(5, 11)
    run = partial(gram_newton_schulz, coefficients="polar_express_1p05", resets=resets)
    panels, whole = jax.jit(partial(run, blocks=2))(x), jax.jit(run)(x)
    chex.assert_trees_all_close(panels, whole, atol=5e-5)


@pytest.mark.parametrize("function", [newton_schulz, gram_newton_schulz])
def test_edges(function):
    run = jax.jit(partial(function, blocks=3, steps=2))
    chex.assert_trees_all_equal(run(jnp.zeros((3, 5))), jnp.zeros((3, 5)))
    assert run(jnp.zeros((0, 5))).shape == (0, 5)
    x = gaussian(3, 5)
    chex.assert_trees_all_close(function(x, steps=0, blocks=3), x / np.linalg.norm(x), rtol=1e-6)
    assert run(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="blocks is a number of panels, 1 or more, got 0"):
        function(x, blocks=0)


def test_derivative():
    def slope(blocks):
        return jax.grad(lambda x: gram_newton_schulz(x, steps=2, blocks=blocks)[0, 1])

    x = gaussian(3, 5)
    chex.assert_trees_all_close(jax.jit(slope(2))(x), jax.jit(slope(1))(x), atol=1e-4)


def dots(shape, platform, **options):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    traced = jax.jit(partial(orthogonal_factor, **options)).trace(x)
    return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.dot_general")


def test_panels_are_for_single_large_matrices_on_cpu():
    # X X^T and G^2 in three panels each and P X, once in a loop, against three products a step.
    assert dots((512, 512), "cpu") == 7
    assert dots((512, 512), "tpu") == 15
    assert dots((512, 512), "cpu", blocks=1) == 15
    assert dots((512, 512), "cpu", method="ns") == 15
    assert dots((256, 256), "cpu") == 15
    assert dots((2, 512, 512), "cpu") == 15
