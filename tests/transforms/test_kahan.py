"""Kahan's compensation: 16-bit parameters and what they lack make a float32 trajectory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients

RUN = jax.jit(lambda tx, g, s, p: tx.update(g, s, p), static_argnums=0)
SGD = optkit.kahan(optax.sgd(1e-3))


@given(seed=st.integers(0, 2**16))
def test_parameter_and_compensation_make_the_float32_one(seed: int) -> None:
    grads = gradients(seed, 30, {"w": (4, 5)})
    low = {"w": jnp.asarray(np.random.default_rng(seed).standard_normal((4, 5)), jnp.bfloat16)}
    full, state = np.float64(low["w"].astype(jnp.float32)), SGD.init(low)
    for g in grads:
        updates, state = RUN(SGD, g, state, low)
        low = optax.apply_updates(low, updates)
        full = full - 1e-3 * np.float64(g["w"])
        whole = np.float64(low["w"]) + np.float64(state.compensation["w"])
        # Each step rounds the compensation once: it is at most half a last bit of a parameter.
    bound = len(grads) * 2.0**-9 * 2.0**-8 * np.maximum(np.abs(full), 0.1).max() * 4
    np.testing.assert_allclose(whole, full, atol=bound)


def test_steps_below_the_last_bit_are_kept() -> None:
    p, lost = jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.bfloat16)
    state = SGD.init(p)
    for _ in range(200):
        updates, state = RUN(SGD, jnp.ones(3), state, p)
        p = optax.apply_updates(p, updates)
        lost = optax.apply_updates(lost, jnp.full(3, -1e-3))
    assert lost.tolist() == [1.0] * 3
    np.testing.assert_allclose(np.float32(p), 0.8, atol=4e-3)


def test_only_16_bit_parameters_have_a_compensation() -> None:
    params = {"half": jnp.ones(6, jnp.float16), "full": jnp.ones(6)}
    rows = optkit.plan(optkit.kahan(optax.sgd(0.1)), params).rows
    assert {row.path: row.state_bytes for row in rows} == {"half": 12, "full": 0}
    updates, _ = SGD.update(params, SGD.init(params), params)
    np.testing.assert_array_equal(updates["full"], np.float32(-1e-3) * np.ones(6, np.float32))


def test_16_bit_moments_make_six_bytes() -> None:
    tx = optkit.adamw_kahan(state_dtype=jnp.bfloat16)
    (row,) = optkit.plan(tx, {"w": jnp.zeros((8, 8), jnp.bfloat16)}).rows
    assert row.state_bytes == 6 * 64


def test_parameters_are_needed() -> None:
    with pytest.raises(ValueError, match="kahan needs the parameters"):
        SGD.update(jnp.ones(2), SGD.init(jnp.ones(2, jnp.bfloat16)))
