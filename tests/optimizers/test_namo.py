"""NAMO and NAMO-D as whole optimizers: what the adaptive step does to the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"wide": (3, 7), "tall": (7, 3)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 4, SHAPES)


@functools.cache
def program(name, nesterov, method):
    """One compiled run for all numbers; they are arrays inside."""

    @jax.jit
    def go(params, stacked, numbers):
        factory = optkit.catalogue.get(name).factory
        tx = factory(nesterov=nesterov, method=method, **numbers)

        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = optax.apply_updates(params, u)
            return (params, state), (u, params)

        return jax.lax.scan(step, (params, tx.init(params)), stacked)[1]

    return go


def follow(name, params, grads, nesterov=False, method="svd", **numbers):
    """Updates and parameters after each step, stacked."""
    given = {"learning_rate": 0.05, "weight_decay": 0.0, "cap": 1.0, "norm_eps": 0.0} | numbers
    stacked = jax.tree.map(lambda *xs: jnp.stack(xs), *grads)
    numbers = {key: jnp.float32(value) for key, value in given.items()}
    return program(name, nesterov, method)(params, stacked, numbers)


def spectral(x):
    return np.linalg.norm(np.asarray(x, np.float64), 2, axis=(-2, -1))


def test_a_step_of_namo_is_parallel_to_muons():
    ours = follow("namo", PARAMS, GRADS, True, "ns")[0]["wide"]
    theirs = run(optkit.muon_rms(0.05, weight_decay=0.0), PARAMS, GRADS)[0]["wide"]
    a, b = (np.asarray(u).reshape(len(GRADS), -1) for u in (ours, theirs))
    cosine = np.sum(a * b, 1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    np.testing.assert_allclose(cosine, 1.0, atol=1e-6)


@pytest.mark.parametrize("name", ["namo", "namo_d"])
def test_a_run_does_not_depend_on_the_scale_of_the_gradients(name):
    scaled = [jax.tree.map(lambda g: np.float32(2.0**-40) * g, tree) for tree in GRADS]
    one, other = (follow(name, PARAMS, grads, weight_decay=0.3)[1] for grads in (GRADS, scaled))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    # Gradients far below norm_eps hardly move anything.
    guarded = follow(name, PARAMS, scaled, norm_eps=1e-6, weight_decay=0.3)[0]
    assert np.max(np.abs(guarded["wide"])) < 1e-6


@pytest.mark.parametrize("name", ["namo", "namo_d"])
def test_agreement_leads_to_the_learning_rate_and_noise_to_a_part_of_it(name):
    """The factor of the orthogonal direction, alpha*0.2*sqrt(max), read off a step."""
    side, b1, steps = 8, 0.95, 80
    still = [{"w": np.eye(side, dtype=np.float32)}] * steps
    noise = [{"w": np.roll(np.eye(side, dtype=np.float32), t % side, 1)} for t in range(steps)]
    alphas = []
    for grads in (still, noise):
        last = follow(name, grads[0], grads)[0]["w"][-1]
        alphas.append(np.linalg.norm(last) / np.sqrt(side) / (0.2 * np.sqrt(side)))
    np.testing.assert_allclose(alphas[0], 0.05, rtol=1e-3)
    # Each of the 8 directions comes back: they add up in weights that are known.
    m = (1 - b1) * b1 ** np.arange(steps)
    parts = [m[shift::side].sum() for shift in range(side)]
    np.testing.assert_allclose(alphas[1], 0.05 * np.linalg.norm(parts) / m.sum(), rtol=1e-3)


def test_the_first_step_with_nesterov_is_longer_as_in_the_reference():
    grads = [{"w": np.eye(4, dtype=np.float32)}]
    for nesterov, factor in ((True, 1.95), (False, 1.0)):
        u = follow("namo", grads[0], grads, nesterov)[0]["w"][0]
        np.testing.assert_allclose(u[0, 0], -0.05 * factor * 0.2 * 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["namo", "namo_d"])
def test_a_step_is_never_longer_than_its_cap(name):
    for cap in (1.0, 0.25):
        u = follow(name, PARAMS, GRADS, learning_rate=40.0, cap=cap)[0]
        for leaf in SHAPES:
            # All factors are at the bound, those of the columns too.
            np.testing.assert_allclose(spectral(u[leaf]), cap, rtol=1e-4)
    free = follow(name, PARAMS, GRADS, learning_rate=40.0, cap=1e9)[0]
    assert np.all(spectral(free["wide"]) > 2.0)


@pytest.mark.parametrize("name", ["namo", "namo_d"])
def test_decay_is_adaptive_and_stops_at_zero(name):
    ones = {"w": np.ones((4, 4), np.float32)}
    still, turning = (
        [{"w": np.float32(sign) * np.eye(4, dtype=np.float32)} for sign in signs]
        for signs in ((1, 1), (1, -1))
    )

    def share(grads, rate, decay):
        """What each step takes of a weight that the direction leaves alone."""
        w = follow(name, ones, grads, learning_rate=rate, weight_decay=decay)[1]["w"][:, 0, 1]
        return 1 - np.asarray([w[0], w[1] / w[0] if w[0] else 1.0])

    np.testing.assert_allclose(share(still, 0.1, 0.5), 0.05, rtol=1e-4)
    np.testing.assert_allclose(share(still, 30.0, 0.5), 0.5, rtol=1e-4)  # alpha counts as 1
    np.testing.assert_allclose(share(still, 30.0, 3.0)[0], 1.0, rtol=1e-4)  # not 3
    # A gradient that turns round has a small ratio, and so has its decay.
    assert share(turning, 0.1, 0.5)[1] < 0.002


def test_the_usual_kinds_of_decay_take_the_learning_rate_itself():
    ones = {"w": np.ones((4, 4), np.float32)}
    turning = [{"w": np.float32(sign) * np.eye(4, dtype=np.float32)} for sign in (1, -1)]
    tx = optkit.namo(0.1, weight_decay=0.5, decay="decoupled", method="svd")
    w = run(tx, ones, turning)[1]["w"][:, 0, 1]
    np.testing.assert_allclose(w, [0.95, 0.95**2], rtol=1e-4)


def test_schedules_move_the_cap_with_the_rate():
    rates = optax.piecewise_constant_schedule(40.0, {1: 0.001, 3: 0.0})
    u = run(optkit.namo(rates, weight_decay=0.0, method="svd"), PARAMS, GRADS)[0]["wide"]
    np.testing.assert_allclose(spectral(u)[0], 1.0, rtol=1e-4)
    assert np.all(spectral(u)[1:3] < 0.1) and np.all(spectral(u)[1:3] > 0.001)
    assert not np.any(u[3])


def test_columns_of_equal_ratio_make_namo_d_namo():
    """clamp=1 gives every column the mean ratio; equal gradients in all columns give namo's."""
    g = np.sign(gradients(3, 1, {"w": (6, 6)})[0]["w"])
    grads = [{"w": np.float32(scale) * g} for scale in (1.0, 2.0, -0.5, 0.1)]
    want = follow("namo", grads[0], grads)[1]["w"]
    for clamp in (0.0, 1.0):
        d = follow("namo_d", grads[0], grads, clamp=clamp)[1]["w"]
        np.testing.assert_allclose(d, want, atol=1e-5)


def test_other_leaves_share_rate_and_decay_or_have_their_own():
    params = {"up": {"kernel": jnp.eye(3), "bias": jnp.ones(3)}}
    grads = [jax.tree.map(jnp.ones_like, params)]
    own = follow("namo", params, grads, learning_rate=0.1, weight_decay=0.2)[1]
    np.testing.assert_allclose(own["up"]["bias"][0], 1.0 * (1 - 0.02) - 0.1, rtol=1e-4)
    apart = follow("namo", params, grads, adam_learning_rate=0.5)[1]
    np.testing.assert_allclose(apart["up"]["bias"][0], 0.5, rtol=1e-4)
    tx = optkit.namo(0.1, other=optax.sgd(1.0))
    given, _ = tx.update(grads[0], tx.init(params), params)
    np.testing.assert_allclose(given["up"]["bias"], -1.0, atol=1e-6)


def test_convolutions_take_the_length_of_the_matrix_or_of_the_reference():
    grads = [{"Conv_0": {"kernel": np.float32(np.random.default_rng(0).normal(size=(2, 2, 3, 4)))}}]
    lengths = []
    for shape_from in ("matrix", "first_two_axes"):
        tx = optkit.namo(
            1.0, weight_decay=0.0, nesterov=False, method="svd", shape_from=shape_from, cap=None
        )
        u, _ = tx.update(grads[0], tx.init(grads[0]))
        lengths.append(spectral(np.asarray(u["Conv_0"]["kernel"]).reshape(12, 4)))
    np.testing.assert_allclose(lengths, [0.2 * np.sqrt(12), 0.2 * np.sqrt(2)], rtol=1e-4)


def test_wrong_values_are_named():
    with pytest.raises(ValueError, match="decay='adaptiv' is not one of 'adaptive'"):
        optkit.namo(0.1, decay="adaptiv")
    with pytest.raises(ValueError, match=r"cap=-1\.0"):
        optkit.namo_d(0.1, cap=-1.0)
    with pytest.raises(ValueError, match="clamp=2"):
        optkit.namo_d(0.1, clamp=2)
