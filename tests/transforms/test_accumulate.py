"""Gathering gradients: one big batch, an accumulator of any dtype."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"kernel": (2, 3), "bias": (3,)}
PARAMS = gradients(9, 1, SHAPES)[0]


@pytest.mark.parametrize("every", [2, 3])
@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_the_mean_of_micro_batches_is_one_batch(name, every):
    factory = optkit.catalogue.get(name).factory
    grads = gradients(1, 4 * every, SHAPES)
    schedule = optax.linear_schedule(0.1, 0.0, 6)  # counts steps, not micro steps
    _, moved, state = run(optkit.accumulate_gradients(factory(schedule), every), PARAMS, grads)
    big = [
        jax.tree.map(lambda *g: np.mean(g, 0), *grads[i : i + every])
        for i in range(0, len(grads), every)
    ]
    _, expected, inner = run(factory(schedule), PARAMS, big)
    ends = jax.tree.map(lambda x: x[every - 1 :: every], moved)
    chex.assert_trees_all_close(ends, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(state.inner, inner, rtol=1e-5, atol=1e-6)
    for name, start in PARAMS.items():
        waiting = np.asarray(moved[name][: every - 1])
        np.testing.assert_array_equal(waiting, np.broadcast_to(start, waiting.shape))


def test_the_sum_can_be_taken():
    grads = gradients(2, 2, SHAPES)
    u, _, _ = run(optkit.accumulate_gradients(optax.sgd(1.0), 2, average=False), PARAMS, grads)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[1], u), jax.tree.map(lambda *g: -sum(g), *grads), atol=1e-6
    )


def test_one_gradient_per_step_is_the_inner_optimizer():
    inner = optkit.lion(0.1)
    assert optkit.accumulate_gradients(inner, 1) is inner


@pytest.mark.parametrize(
    ("param", "asked", "kept"),
    [
        (jnp.bfloat16, None, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, None, jnp.float32),
        (jnp.float32, jnp.float16, jnp.float16),
    ],
)
def test_dtype_of_the_accumulator(param, asked, kept):
    grads = {"w": jnp.ones(2, param)}
    tx = optkit.accumulate_gradients(optax.sgd(1.0), 300, dtype=asked)
    state = tx.init(grads)
    assert state.gathered["w"].dtype == kept
    _, moved, state = run(tx, grads, [grads] * 299)
    # 1 + 256 is lost in bfloat16's 8 bits, and kept in all others.
    assert float(state.gathered["w"][0]) == (256.0 if kept == jnp.bfloat16 else 299.0)
    assert moved["w"].dtype == param and int(state.micro_step) == 299
    u, state = jax.jit(tx.update)(grads, state, grads)
    assert u["w"].dtype == param and float(state.gathered["w"][0]) == 0 == int(state.micro_step)


def test_impossible_settings_are_refused():
    for every in (0, 1.5, True):
        with pytest.raises(ValueError, match="every="):
            optkit.accumulate_gradients(optax.sgd(1.0), every)
