"""Superpositional gradient descent: what the sine leaves alone, and what it adds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"w": (3, 2), "b": (4,)}
GRADS, PARAMS = gradients(0, 4, SHAPES), gradients(1, 1, SHAPES)[0]


def same(got, want):
    # Optax's 1 - 0.999**n has lost four digits at the first steps.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_without_strength_or_entries_it_is_adam():
    want = run(optax.adam(0.1, eps=0.0, eps_root=1e-8), PARAMS, GRADS)[1]
    for options in ({"strength": 0.0}, {"entries": 0}):
        same(run(optkit.superpositional(0.1, correct=True, **options), PARAMS, GRADS)[1], want)


def test_only_the_first_entries_have_the_sine():
    tx = optkit.sine_modulation(optax.scale(2.0), 0.7, entries=3)
    out, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    for name, g in GRADS[0].items():
        first = (np.arange(g.size) < 3).reshape(g.shape)
        want = 2.0 * g + first * 0.7 * np.sin(np.pi * np.float64(PARAMS[name])) * g
        np.testing.assert_allclose(out[name], want, rtol=1e-5, atol=1e-6)


def test_integers_are_not_modulated():
    whole = {"w": jnp.array([-3.0, 0.0, 1.0, 2.0, 1e6, 1e9])}
    tx = optkit.sine_modulation(optax.identity())
    grads = {"w": jnp.full(6, 1e8)}
    np.testing.assert_array_equal(tx.update(grads, tx.init(whole), whole)[0]["w"], grads["w"])


def test_uncorrected_first_steps_are_longer():
    tx = optkit.superpositional(1.0, entries=0)
    out, _ = tx.update(GRADS[0], tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(np.abs(out["w"]), 0.1 / np.sqrt(0.001), rtol=1e-3)
