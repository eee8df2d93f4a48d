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


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.sampled_from([(), (2,), (2, 3)]))
def test_product(m, k, blocks, batch):
    x = gaussian(*batch, m, k)
    got = np.asarray(symmetric_product(jnp.asarray(x), jnp.asarray(x), blocks=blocks))
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
@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (6, 6), (2, 5, 9)])
def test_same_factor(function, shape):
    x = gaussian(*shape)
    whole = jax.jit(function)(x)
    for blocks in (2, 3):
        panels = jax.jit(partial(function, blocks=blocks))(x)
        chex.assert_trees_all_close(panels, whole, atol=2e-5)


@pytest.mark.parametrize("resets", [(), (2,), (1, 4), (1, 2, 3, 4)])
def test_resets(resets):
    x = gaussian(5, 11)
    panels = gram_newton_schulz(x, "polar_express_1p05", resets=resets, blocks=2)
    whole = gram_newton_schulz(x, "polar_express_1p05", resets=resets)
    chex.assert_trees_all_close(panels, whole, atol=5e-5)


@pytest.mark.parametrize("function", [newton_schulz, gram_newton_schulz])
def test_edges(function):
    run = partial(function, blocks=3)
    chex.assert_trees_all_equal(run(jnp.zeros((3, 5))), jnp.zeros((3, 5)))
    assert run(jnp.zeros((0, 5))).shape == (0, 5)
    x = gaussian(3, 5)
    chex.assert_trees_all_close(run(x, steps=0), function(x, steps=0))
    chex.assert_trees_all_close(run(x, "cubic5"), function(x, "cubic5"), atol=1e-5)
    assert run(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    chex.assert_trees_all_close(
        jax.grad(lambda x: run(x)[0, 1])(x), jax.grad(lambda x: function(x)[0, 1])(x), atol=1e-4
    )
    with pytest.raises(ValueError, match="blocks is a number of panels, 1 or more, got 0"):
        function(x, blocks=0)


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
