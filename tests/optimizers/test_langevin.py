"""Samplers: the law they sample, what they are without noise, and federated corrections."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import compiled, gradients, run

CHAINS = 16384
SHAPES = {"w": (3, 2), "b": (4,)}
SEEDS = st.integers(0, 2**32 - 1)
GRADS, PARAMS = gradients(0, 4, SHAPES), gradients(1, 1, SHAPES)[0]


def sampled(tx, gradient, steps, size):
    """The last state of independent chains, (CHAINS, size), in one compiled scan."""

    @jax.jit
    def go(x):
        def step(carry, _):
            x, state = carry
            updates, state = tx.update(gradient(x), state, x)
            return (optax.apply_updates(x, updates), state), None

        return jax.lax.scan(step, (x, tx.init(x)), length=steps)[0][0]

    return np.float64(go(jnp.zeros((CHAINS, size))))


def check_covariance(x, want):
    """Whitened second moments within 4.5 deviations of 1 and 0.

    A right sampler fails with a probability of 7e-6 an entry, three entries: 2e-5. Deviations are
    sqrt(2/n) and sqrt(1/n), so that an error of 5% is found.
    """
    white = np.linalg.inv(np.linalg.cholesky(want))
    moments = white @ (x.T @ x / len(x)) @ white.T
    size = len(want)
    deviation = np.sqrt((1 + np.eye(size)) / len(x))
    assert np.all(np.abs(moments - np.eye(size)) < 4.5 * deviation), moments


HESSIAN = np.array([[2.0, 0.8], [0.8, 1.0]])


def stationary(rate, heat):
    """Covariance of x <- (1 - rate*H)x + sqrt(2*rate*heat)*z, discretisation included."""
    return heat * np.linalg.inv(HESSIAN @ (np.eye(2) - rate * HESSIAN / 2))


def test_sgld_samples_a_gaussian():
    gradient = lambda x: x @ jnp.float32(HESSIAN)  # noqa: E731
    x = sampled(optkit.sgld(0.3, temperature=0.7), gradient, 60, 2)
    check_covariance(x, stationary(0.3, 0.7))
    with pytest.raises(AssertionError):  # the test can tell: here the discretisation is 20%
        check_covariance(x, stationary(0.0, 0.7))


def test_a_weight_decay_is_a_prior():
    tx = optkit.sgld(0.1, temperature=0.5, weight_decay=2.0, key=3)
    x = sampled(tx, jnp.zeros_like, 60, 1)
    check_covariance(x, np.array([[0.5 / (2.0 * 0.9)]]))


def test_psgld_with_a_flat_preconditioner_is_sgld():
    noise = gradients(5, 1, SHAPES)[0]
    got, want = (
        tx.update(GRADS[0], tx.init(PARAMS), PARAMS, noise=noise)[0]
        for tx in (
            optkit.psgld(10.0, eps=1000.0, temperature=0.3),
            optkit.sgld(0.01, temperature=0.3),
        )
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-3, atol=1e-4), got, want)


SAMPLERS = {
    "sgld": lambda rate, heat, decay: optkit.sgld(rate, temperature=heat, weight_decay=decay),
    "psgld": lambda rate, heat, decay: optkit.psgld(rate, temperature=heat, weight_decay=decay),
    "langevin_adam": lambda rate, heat, decay: optkit.langevin_adam(
        rate, temperature=heat, weight_decay=decay
    ),
    "adam_sgld": lambda rate, heat, decay: optkit.adam_sgld(
        rate, drift=0.0, temperature=heat, weight_decay=decay
    ),
}
BASES = {
    "sgld": optax.sgd,
    "psgld": lambda rate: optax.rmsprop(rate, decay=0.99, eps=1e-5, eps_in_sqrt=False),
    # Optax's 1 - 0.999**n has lost four digits at the first steps.
    "langevin_adam": lambda rate: optkit.adamw(rate, b2=0.999, eps=1e-8, weight_decay=0.0),
    "adam_sgld": optax.sgd,
}
SAMPLED = {name: compiled(make) for name, make in SAMPLERS.items()}


def base_of(make):
    return compiled(lambda rate, decay: optax.chain(optax.add_decayed_weights(decay), make(rate)))


BASE = {name: base_of(make) for name, make in BASES.items()}
BASE["adam_sgld"] = BASE["sgld"]
DRAWN = {"seed": SEEDS, "rate": st.floats(0.01, 0.2), "decay": st.floats(0.0, 0.5)}


@pytest.mark.parametrize("name", SAMPLERS)
@given(**DRAWN)
def test_without_noise_it_is_the_base_optimizer(name, seed, rate, decay):
    params, *grads = gradients(seed, 5, SHAPES)
    got = SAMPLED[name](params, grads, rate=rate, heat=0.0, decay=decay)[1]
    want = BASE[name](params, grads, rate=rate, decay=decay)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("name", SAMPLERS)
@given(**DRAWN, heat=st.floats(0.0, 4.0))
def test_noise_is_linear_in_the_root_of_the_temperature(name, seed, rate, decay, heat):
    """The first update's, which no parameters have felt yet; SGLD's is the formula's."""
    params, grads = gradients(seed, 2, SHAPES)
    cold, one, some = (
        SAMPLED[name](params, [grads] * 4, rate=rate, heat=heat, decay=decay)[0]
        for heat in (0.0, 1.0, heat)
    )
    for path in SHAPES:
        still, unit, noisy = (u[path][0] for u in (cold, one, some))
        size = np.abs([still, unit, noisy]).max()
        assert np.all(unit != still)
        want = still + np.sqrt(heat) * (unit - still)
        np.testing.assert_allclose(noisy, want, rtol=0, atol=1e-6 * size)


@jax.jit
def fed(rate, heat, grads, noise):
    tx = optkit.sgld(rate, temperature=heat)
    return tx.update(grads, tx.init(PARAMS), PARAMS, noise=noise)[0]


@given(SEEDS, st.floats(0.01, 1.0), st.floats(0.0, 4.0))
def test_recorded_noise_is_scaled_by_rate_and_temperature(seed, rate, heat):
    grads, noise = gradients(seed, 2, SHAPES)
    for path, u in fed(rate, heat, grads, noise).items():
        want = np.sqrt(2 * rate * heat) * noise[path] - rate * grads[path]
        np.testing.assert_allclose(u, want, rtol=1e-5, atol=1e-6)


def test_a_shared_seed_repeats_a_run_and_another_does_not():
    runs = [run(optkit.sgld(0.1, temperature=1.0, key=k), PARAMS, GRADS)[1] for k in (1, 1, 2)]
    np.testing.assert_array_equal(runs[0]["w"], runs[1]["w"])
    assert float(jnp.abs(runs[0]["w"] - runs[2]["w"]).min()) > 0


def test_a_wrapped_optimizer_has_the_noise_of_its_rate():
    """Schedules of the step and of the noise are one: at rate 0 nothing moves."""
    rate = lambda t: jnp.where(t < 2, 0.0, 0.5)  # noqa: E731
    tx = optkit.langevin_noise(optax.sgd(rate), rate, temperature=4.0)
    moved = run(tx, PARAMS, GRADS)[0]["w"]
    assert not np.any(moved[:2]) and np.all(moved[2:] != 0)


SHARDS = 4


@jax.jit
def corrections(at, means, precisions, shares):
    def of(shard):
        return optkit.conducive_gradient(at, means, precisions, shard, shares)

    return jnp.stack([of(shard)["w"] for shard in range(SHARDS)])


@st.composite
def shards(draw):
    """Weights, and the means, precisions and shares of Gaussian surrogates."""
    random = np.random.default_rng(draw(SEEDS))
    at, means = random.uniform(-5, 5, 3), random.uniform(-2, 2, (SHARDS, 3))
    precisions, shares = random.uniform(0.1, 3, (SHARDS, 3)), random.uniform(0.5, 2, SHARDS)
    trees = [{"w": np.float32(x)} for x in (at, means, precisions)]
    return *trees, np.float32(shares / shares.sum())


@given(shards())
def test_conducive_gradients_cancel_on_average(drawn):
    shares = drawn[-1]
    np.testing.assert_allclose(shares @ np.asarray(corrections(*drawn)), 0.0, atol=2e-5)


@given(shards())
def test_exact_surrogates_give_every_shard_the_whole_gradient(drawn):
    at, means, precisions, shares = drawn
    own = precisions["w"] * (means["w"] - at["w"])  # of the log-likelihood of each shard
    corrected = own / shares[:, None] + corrections(*drawn)
    np.testing.assert_allclose(corrected, np.tile(own.sum(0), (SHARDS, 1)), rtol=1e-4, atol=1e-4)


def test_surrogates_have_to_fit():
    wrong, right = {"w": np.zeros((3, 3), np.float32)}, {"w": np.zeros((4, 3), np.float32)}
    with pytest.raises(ValueError, match=r"give \(4, 3\)"):
        corrections({"w": jnp.zeros(3)}, wrong, right, np.full(SHARDS, 0.25, np.float32))


def federated(correct, shards=10, rounds=5, local=40, rate=0.02, chains=4096):
    """Chains of SGLD that stay at one shard for many steps, and the variance they should have."""
    random = np.random.default_rng(4)
    means = jnp.float32(random.standard_normal((shards, 2)))
    precisions = jnp.float32(random.uniform(0.2, 1.0, (shards, 2)))
    f = jnp.full(shards, 1.0 / shards)
    tx = optkit.sgld(rate, temperature=1.0)

    def gradient(x, s):
        own = precisions[s] * (means[s] - x) / f[s]
        own += optkit.conducive_gradient(x, means, precisions, s, f) if correct else 0.0
        return -own

    @jax.jit
    def go(x):
        def visit(carry, key):
            shard = jax.random.randint(key, (chains,), 0, shards)

            def step(carry, _):
                x, state = carry
                updates, state = tx.update(jax.vmap(gradient)(x, shard), state, x)
                return (optax.apply_updates(x, updates), state), None

            return jax.lax.scan(step, carry, length=local)

        keys = jax.random.split(jax.random.key(8), rounds)
        return jax.lax.scan(visit, (x, tx.init(x)), keys)[0][0]

    total = np.float64(precisions.sum(0))
    centre = np.float64((precisions * means).sum(0)) / total
    return np.float64(go(jnp.zeros((chains, 2)))) - centre, 1 / (total * (1 - rate * total / 2))


def test_with_exact_surrogates_shards_sample_the_whole_posterior():
    x, variance = federated(correct=True)
    check_covariance(x, np.diag(variance))
    drifting, _ = federated(correct=False)
    assert np.all(drifting.var(axis=0) > 2 * variance)
