"""Superpositional gradient descent: what the sine leaves alone, and what it adds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import compiled, gradients

SHAPES = {"w": (3, 2), "b": (4,)}
PARAMS = gradients(1, 1, SHAPES)[0]
SEEDS = st.integers(0, 2**32 - 1)
STRENGTHS = st.floats(0.0, 4.0)
SUPERPOSITIONAL = compiled(lambda **numbers: optkit.superpositional(correct=True, **numbers))
ADAM = compiled(lambda rate: optax.adam(rate, eps=0.0, eps_root=1e-8))


@given(SEEDS, st.floats(0.01, 0.5), STRENGTHS, st.integers(0, 9))
def test_without_strength_or_entries_it_is_adam(seed, rate, strength, entries):
    grads = gradients(seed, 4, SHAPES)
    want = ADAM(PARAMS, grads, rate=rate)[0]
    for numbers in ({"strength": 0.0, "entries": entries}, {"strength": strength, "entries": 0}):
        got = SUPERPOSITIONAL(PARAMS, grads, learning_rate=rate, **numbers)[0]
        # Optax's 1 - 0.999**n has lost four digits at the first steps.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@jax.jit
def modulated(strength, entries, grads, params):
    tx = optkit.sine_modulation(optax.scale(2.0), strength, entries=entries)
    return tx.update(grads, tx.init(params), params)[0]


@given(SEEDS, STRENGTHS, st.integers(0, 7), st.integers(-50, 50))
def test_only_the_first_entries_have_the_sine_whose_period_is_two(seed, strength, entries, turns):
    grads, params = gradients(seed, 2, SHAPES)
    # Multiples of 2**-10: whole numbers can be added to them without rounding.
    params = jax.tree.map(lambda p: np.round(1024 * p) / np.float32(1024), params)
    out = modulated(strength, entries, grads, params)
    turned = modulated(strength, entries, grads, jax.tree.map(lambda p: p + 2 * turns, params))
    for name, g in grads.items():
        first = (np.arange(g.size) < entries).reshape(g.shape)
        want = 2.0 * g + first * strength * np.sin(np.pi * np.float64(params[name])) * g
        np.testing.assert_allclose(out[name], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(out[name][~first], 2 * g[~first])
        np.testing.assert_array_equal(turned[name], out[name])


@given(SEEDS, STRENGTHS, st.lists(st.integers(-(2**30), 2**30), min_size=10, max_size=10))
def test_integers_are_not_modulated(seed, strength, whole):
    grads = jax.tree.map(lambda g: np.float32(1e8) * g, gradients(seed, 1, SHAPES)[0])
    whole = np.float32([*whole[:6], -3, 0, 1, 2])  # large ones round to integers, too
    params = {"w": whole[:6].reshape(3, 2), "b": whole[6:]}
    out = modulated(strength, 6, grads, params)
    jax.tree.map(lambda u, g: np.testing.assert_array_equal(u, 2 * g), out, grads)


def test_uncorrected_first_steps_are_longer():
    tx, grads = optkit.superpositional(1.0, entries=0), gradients(0, 1, SHAPES)[0]
    out, _ = tx.update(grads, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(jnp.abs(out["w"]), 0.1 / np.sqrt(0.001), rtol=1e-3)
