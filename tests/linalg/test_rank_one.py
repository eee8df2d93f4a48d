"""Rank-one updates against dense inverses in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import rank_one_inverse

SEEDS = st.integers(0, 2**32 - 1)
STEP = jax.jit(rank_one_inverse, static_argnames="mode")


def spd(rng, n, low=0.2, high=2.0):
    q, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return (q * rng.uniform(low, high, n)) @ q.T


@given(seed=SEEDS, decay=st.floats(0.3, 1.0))
def test_exact_is_the_dense_inverse_of_the_average(seed, decay):
    rng = np.random.default_rng(seed)
    p, v = spd(rng, 5), rng.standard_normal(5)
    want = np.linalg.inv(decay * np.linalg.inv(p) + (1 - decay) * np.outer(v, v))
    got = STEP(jnp.float32(p), jnp.float32(v), decay, mode="exact")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@given(seed=SEEDS, decay=st.floats(0.3, 1.0))
def test_code_is_the_inverse_with_the_whole_product_added(seed, decay):
    rng = np.random.default_rng(seed)
    p, v = spd(rng, 5, high=1.0), rng.standard_normal(5)
    blended = decay * p + (1 - decay) * np.eye(5)
    want = np.linalg.inv(np.linalg.inv(blended) + np.outer(v, v))
    got = STEP(jnp.float32(p), jnp.float32(v), decay, mode="code")
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@given(seed=SEEDS, size=st.sampled_from([1e-3, 1.0, 30.0]))
def test_code_keeps_eigenvalues_between_0_and_1(seed, size):
    rng = np.random.default_rng(seed)
    p = jnp.eye(5)
    for _ in range(20):
        p = STEP(p, jnp.float32(size * rng.standard_normal(5)), 0.95, mode="code")
    np.testing.assert_array_equal(p, p.T)
    values = np.linalg.eigvalsh(np.float64(p))
    assert values.max() <= 1 + 1e-6
    assert values.min() > -1e-6


def test_zeros_let_the_code_forget_and_the_average_shrink():
    p = jnp.float32(spd(np.random.default_rng(0), 5))
    zero = jnp.zeros(5)
    forgot = STEP(p, zero, 0.95, mode="code")
    np.testing.assert_allclose(forgot, 0.95 * p + 0.05 * np.eye(5), atol=1e-6)
    np.testing.assert_allclose(STEP(p, zero, 0.95, mode="exact"), p / 0.95, rtol=1e-6)


def test_the_printed_formula_grows_where_an_inverse_shrinks():
    v = jnp.array([2.0, 0.0])
    printed, exact = (STEP(jnp.eye(2), v, 0.5, mode=mode) for mode in ("paper", "exact"))
    # 0.5 + 0.5/(0.25*(1 + 0.25*4)) * 4
    np.testing.assert_allclose(printed, [[4.5, 0.0], [0.0, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(exact, [[0.4, 0.0], [0.0, 2.0]], rtol=1e-6)


def test_batches_are_single_matrices():
    rng = np.random.default_rng(1)
    p = jnp.float32(np.stack([spd(rng, 5) for _ in range(3)]))
    v = jnp.float32(rng.standard_normal((3, 5)))
    for mode in ("code", "exact", "paper"):
        whole = rank_one_inverse(p, v, 0.9, mode=mode)
        for i in range(3):
            alone = rank_one_inverse(p[i], v[i], 0.9, mode=mode)
            np.testing.assert_allclose(whole[i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("p", "v", "mode", "said"),
    [
        (jnp.eye(2), jnp.ones(2), "other", "mode='other'"),
        (jnp.ones((2, 3)), jnp.ones(2), "exact", r"\(2, 3\)"),
        (jnp.eye(2), jnp.ones(3), "exact", r"\(3,\)"),
        (jnp.ones(2), jnp.ones(2), "exact", "matrices"),
    ],
)
def test_wrong_arguments_are_told(p, v, mode, said):
    with pytest.raises(ValueError, match=said):
        rank_one_inverse(p, v, mode=mode)
