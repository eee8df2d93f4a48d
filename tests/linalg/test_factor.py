import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.linalg import (
    get_coefficients,
    gram_newton_schulz,
    newton_schulz,
    orthogonal_factor,
    polar,
)
from optkit.linalg.factor import choose_form, gram_flops, standard_flops

JORDAN = get_coefficients("jordan")


def gaussian(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_names_reach_their_functions():
    x = gaussian(3, 5)
    chex.assert_trees_all_equal(orthogonal_factor(x, "svd"), polar(x, "svd"))
    chex.assert_trees_all_equal(orthogonal_factor(x, "qdwh"), polar(x, "qdwh"))
    options = {"eps": 0.1, "eps_mode": "clamp", "margin": 1.1, "precondition": "schatten"}
    chex.assert_trees_all_equal(
        orthogonal_factor(x, "ns", "cans", 3, **options), newton_schulz(x, "cans", 3, **options)
    )
    chex.assert_trees_all_equal(
        orthogonal_factor(x, "gram_ns", "cans", 3, resets=(1,), **options),
        gram_newton_schulz(x, "cans", 3, resets=(1,), **options),
    )
    chex.assert_trees_all_equal(orthogonal_factor(x, lambda a: a + 1), x + 1)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (8, 20), (16, 16), (2, 64, 160)])
def test_auto_is_one_of_the_two_forms(shape):
    x = gaussian(*shape)
    y = jax.jit(orthogonal_factor)(x)
    chex.assert_trees_all_close(y, jax.jit(newton_schulz)(x), atol=5e-5)


def test_choice():
    assert choose_form(512, 512, JORDAN, jnp.float32) == "ns"
    assert choose_form(2048, 512, JORDAN, jnp.float32) == "gram_ns"
    assert choose_form(16, 640, JORDAN, jnp.float32) == "ns"
    assert choose_form(512, 640, JORDAN, jnp.float32) == "ns"
    express = get_coefficients("polar_express")
    assert choose_form(512, 4096, express, jnp.float32) == "gram_ns"
    assert choose_form(512, 4096, express, jnp.bfloat16) == "ns"
    assert choose_form(512, 4096, express, jnp.bfloat16, (2,)) == "gram_ns"


def test_flops():
    m, n = 1024, 4096
    assert standard_flops(m, n, JORDAN) == 5 * (4 * m * m * n + 2 * m**3)
    assert standard_flops(n, m, JORDAN) == standard_flops(m, n, JORDAN)
    assert gram_flops(m, n, JORDAN, (2,)) == 8 * m * m * n + 28 * m**3
    assert gram_flops(m, n, ()) == standard_flops(m, n, ()) == 0
    cubic = get_coefficients("cubic5")
    assert standard_flops(m, n, cubic) == 5 * 4 * m * m * n


def test_errors():
    with pytest.raises(ValueError, match=r"method must be one of .* or a function, got 'newton'"):
        orthogonal_factor(jnp.eye(2), "newton")
    with pytest.raises(ValueError, match="orthogonal_factor works on matrices"):
        orthogonal_factor(jnp.ones(2))
    with pytest.raises(ValueError, match="precondition='aol'"):
        orthogonal_factor(jnp.eye(2), "auto", "aol_flash")
