"""Grafting: one method's direction, another's length."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit


@given(seed=st.integers(0, 99), per=st.sampled_from(["matrix", "leaf"]))
def test_each_part_has_the_direction_of_one_and_the_length_of_the_other(
    seed: int, per: str
) -> None:
    grads = {"layers": {"kernel": np.float32(np.random.default_rng(seed).normal(size=(2, 3, 4)))}}
    tx = optkit.graft(optax.scale_by_sign(), optax.scale(-0.1), per=per)
    u, _ = tx.update(grads, tx.init(grads))
    out, g = np.float64(u["layers"]["kernel"]), np.float64(grads["layers"]["kernel"])
    axes = (1, 2) if per == "matrix" else (0, 1, 2)
    norm = lambda x: np.sqrt(np.sum(x * x, axis=axes, keepdims=True))  # noqa: E731
    np.testing.assert_allclose(out, np.sign(g) / norm(np.sign(g)) * norm(0.1 * g), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_any_length_is_finite_and_no_direction_is_no_step(scale: float) -> None:
    grads = {"w": jnp.full((2, 3), scale)}
    tx = optkit.graft(optax.identity(), optax.scale(2.0))
    u, _ = tx.update(grads, tx.init(grads))
    np.testing.assert_allclose(u["w"], 2 * grads["w"], rtol=1e-5)
    still = optkit.graft(optax.set_to_zero(), optax.identity())
    assert not np.any(still.update(grads, still.init(grads))[0]["w"])
