"""What the experiments on states of few bytes share: text, rates, weights on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.claims import lm
from benchmarks.claims.eco import STEP, GridCodec, on_grid
from optkit.tasks.corpus import standard_library


def test_reported_text_lies_behind_the_text_for_choosing() -> None:
    model, reported = lm.problem(16, 16, 2)
    text = standard_library().held_out
    half = text.size // 2
    for window, place in ((model.held_out, half - 17), (reported, half)):
        found = window["inputs"][-1 if place < half else 0]
        np.testing.assert_array_equal(found, text[place : place + 16])
    np.testing.assert_array_equal(reported["targets"][-1], text[-16:])


def test_rates_rise_to_the_top_and_fall_to_a_tenth() -> None:
    rates = np.array([lm.cosine(2.0, 100)(jnp.int32(n)) for n in range(101)])
    assert rates.max() == pytest.approx(2.0) and rates.argmax() in (4, 5)
    np.testing.assert_allclose(rates[:5], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)
    assert np.all(np.diff(rates[5:]) <= 0) and rates[-1] == pytest.approx(0.2)


@pytest.mark.parametrize("master", [True, False])
def test_steps_below_half_a_grid_step_need_a_master_copy(master: bool) -> None:
    """Ten steps of a fifth of the grid lead two grid steps on, or nowhere."""
    tx = on_grid(optax.sgd(0.2 * STEP), GridCodec(redrawn=0.0), master=master)
    params = {"w": jnp.zeros((2, 2)), "b": jnp.zeros(2)}
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(10):
        grads = jax.tree.map(lambda p: -jnp.ones_like(p), params)
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], 2.0 * STEP if master else 0.0, rtol=1e-5)
    np.testing.assert_allclose(params["b"], 2.0 * STEP, rtol=1e-5)  # vectors are not rounded


def test_a_stochastic_grid_is_right_on_average() -> None:
    codec = GridCodec("stochastic")
    x = jnp.full(4000, 12.3 * STEP)
    keys = jax.random.split(jax.random.key(0), 20)
    seen = np.array(jax.vmap(lambda key: codec.round_trip(x, key))(keys))
    steps = np.unique(np.round(np.diff(np.unique(seen[0])) / STEP, 3))
    assert steps.size == 1 and 1.0 <= steps[0] <= 1.05
    assert seen.mean() == pytest.approx(float(x[0]), abs=4 * 0.5 * STEP / np.sqrt(seen.size))
