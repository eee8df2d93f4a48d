"""Guided evolution strategies: the span of surrogates, and the law of the noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.evolution.guided import orthonormal

PARAMS = {"a": np.array([0.3, -0.2, 0.1], np.float32), "b": np.zeros((2, 2), np.float32)}
SIZE = 7
BASIS = jax.jit(orthonormal)


def rows(tree) -> np.ndarray:
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def tree(vectors: np.ndarray) -> dict:
    vectors = np.asarray(vectors, np.float32)
    shape = vectors.shape[:-1]
    return {"a": vectors[..., :3], "b": vectors[..., 3:].reshape(*shape, 2, 2)}


def fitness(seed: int, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def guided(surrogates: np.ndarray, population: int = 6, **options):
    """A strategy that has been shown surrogates, and its state."""
    es = optkit.guided_es(population, **{"sigma": 0.5, "key": 3, **options})
    state = es.init(PARAMS)
    for vector in surrogates:
        state = es.guide(state, tree(vector))
    return es, state


@given(
    seed=st.integers(0, 10_000),
    angle=st.sampled_from([1.0, 0.1, 1e-2]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    rank=st.integers(0, 3),
)
def test_basis_is_orthonormal_and_of_the_span(seed, angle, scale, rank):
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(SIZE, 3)))[0].T
    # Directions that lean on the first one, one that is doubled, and zeros.
    vectors = np.zeros((4, SIZE))
    vectors[:rank] = directions[:1] + angle * directions[:rank]
    if rank:
        vectors[3] = -2.0 * vectors[0]
    basis, found = BASIS(tree(scale * vectors[rng.permutation(4)]))
    assert float(found) == rank
    got = rows(basis)
    kept = got[np.linalg.norm(got, axis=1) > 0.5]
    assert np.all(np.abs(got).max(axis=1)[np.linalg.norm(got, axis=1) <= 0.5] == 0.0)
    assert len(kept) == rank
    np.testing.assert_allclose(kept @ kept.T, np.eye(rank), atol=3e-6)
    inside = kept @ directions[:rank].T @ directions[:rank]
    np.testing.assert_allclose(inside, kept, atol=2e-6 / angle)


def test_a_surrogate_that_is_not_finite_guides_nothing():
    good = np.arange(1.0, 8.0)
    bad = np.where(good == 3.0, np.inf, good)
    basis, rank = BASIS(tree(np.stack([good, bad, np.full(7, np.nan), bad])))
    assert float(rank) == 1.0
    np.testing.assert_allclose(
        np.abs(rows(basis)).max(axis=0), good / np.linalg.norm(good), rtol=1e-5
    )


def test_alpha_1_is_antithetic_search():
    sigma, beta = 0.5, 3.0
    es, state = guided(np.eye(SIZE)[:2], subspace=2, alpha=1.0, beta=beta, sigma=sigma)
    plain = optkit.truncated_es(6, sigma=sigma / SIZE**0.5, key=3)
    members = es.perturb(PARAMS, state), plain.perturb(PARAMS, plain.init(PARAMS))
    np.testing.assert_allclose(rows(members[0]), rows(members[1]), atol=1e-6)
    f = fitness(1)
    got = es.update(f, state, PARAMS)[0]
    want = plain.update(f, plain.init(PARAMS), PARAMS)[0]
    for name in PARAMS:
        np.testing.assert_allclose(got[name], beta / SIZE * want[name], atol=1e-6)


def test_alpha_0_stays_in_the_span():
    rng = np.random.default_rng(4)
    shown = rng.normal(size=(3, SIZE))
    es, state = guided(shown, subspace=2, alpha=0.0)
    kept = np.linalg.qr(shown[1:].T)[0]
    g = np.concatenate(
        [np.ravel(x) for x in jax.tree.leaves(es.update(fitness(2), state, PARAMS)[0])]
    )
    np.testing.assert_allclose(kept @ (kept.T @ g), g, atol=1e-6)
    assert np.linalg.norm(g) > 1e-3
    # The first surrogate has been forgotten.
    assert np.linalg.norm(shown[0] - kept @ (kept.T @ shown[0])) > 0.1


def test_without_a_surrogate_noise_goes_everywhere():
    es, state = guided(np.zeros((0, SIZE)), alpha=0.0)
    assert np.linalg.matrix_rank(rows(es.noise(PARAMS, state))) == 3
    other, same = guided(np.zeros((0, SIZE)), alpha=1.0)
    np.testing.assert_array_equal(rows(es.noise(PARAMS, state)), rows(other.noise(PARAMS, same)))


def test_law_of_the_noise_and_mean_of_the_estimate():
    rng = np.random.default_rng(5)
    shown = rng.normal(size=(2, SIZE))
    es, state = guided(shown, 40_000, subspace=3, alpha=0.3, beta=2.0)
    noise = rows(jax.jit(es.noise)(PARAMS, state))
    kept = np.linalg.qr(shown.T)[0]
    law = 0.3 / SIZE * np.eye(SIZE) + 0.7 / 2 * kept @ kept.T
    # Standard error of an entry is below sqrt(2/20000) * its variance's bound.
    np.testing.assert_allclose(noise.T @ noise / len(noise), law, atol=5 * 0.01 * 0.4)
    assert np.trace(law) == pytest.approx(1.0)
    slope = rng.normal(size=SIZE)
    f = rows(es.perturb(PARAMS, state)) @ slope
    got = es.update(f.astype(np.float32), state, PARAMS)[0]
    got = np.concatenate([np.ravel(x) for x in jax.tree.leaves(got)])
    np.testing.assert_allclose(got, -2.0 * law @ slope, atol=0.1)


def test_the_sum_over_pairs():
    shown = np.eye(SIZE)[:1]
    (es, state), (whole, same) = guided(shown), guided(shown, divide_by_pairs=False)
    one, three = es.update(fitness(3), state, PARAMS)[0], whole.update(fitness(3), same, PARAMS)[0]
    for name in PARAMS:
        np.testing.assert_allclose(3.0 * one[name], three[name], rtol=1e-6)


def test_what_is_fed_is_what_counts():
    es, state = guided(np.eye(SIZE)[2:3])
    plain = es.update(fitness(4), state, PARAMS)[0]
    for fed in ({"noise": es.noise(PARAMS, state)}, {"members": es.perturb(PARAMS, state)}):
        got = es.update(fitness(4), state, PARAMS, **fed)[0]
        for name in PARAMS:
            np.testing.assert_allclose(got[name], plain[name], atol=2e-6)


def test_a_surrogate_in_the_update_guides_the_next_population_and_chains_can_be_guided():
    es, state = guided(np.eye(SIZE)[2:3], subspace=2)
    tx = optax.chain(es, optax.sgd(0.1))
    held = tx.init(PARAMS)
    held = es.guide(held, tree(np.eye(SIZE)[2]))
    vector = tree(np.arange(7.0))
    g, after = es.update(fitness(5), state, PARAMS, surrogate=vector)
    updates, held = jax.jit(tx.update)(fitness(5), held, PARAMS, surrogate=vector)
    for name in PARAMS:
        np.testing.assert_allclose(updates[name], -0.1 * g[name], rtol=1e-5)
    want = np.stack([np.eye(SIZE)[2], np.arange(7.0)])
    np.testing.assert_array_equal(rows(after.es_surrogates), want)
    np.testing.assert_array_equal(rows(es.state(held).es_surrogates), want)


def test_guided_search_beats_plain_search_with_a_biased_surrogate():
    # Least squares, and surrogates with a constant bias as large as the gradient.
    rng = np.random.default_rng(6)
    size, steps = 60, 15
    a = jnp.asarray(rng.normal(size=(80, size)) / 80**0.5, jnp.float32)
    bias = jnp.asarray(rng.normal(size=size), jnp.float32)

    def loss(x):
        return 0.5 * jnp.sum(jnp.square(a @ x - 1.0))

    def run(alpha):
        es = optkit.guided_es(4, sigma=0.01, alpha=alpha, beta=2.0, maximize=False)
        tx = optax.chain(es, optax.sgd(0.5))

        def step(carry, _):
            x, state = carry
            g = jax.grad(loss)(x)
            surrogate = g + bias * jnp.linalg.norm(g) / jnp.linalg.norm(bias)
            state = es.guide(state, surrogate)
            f = jax.vmap(loss)(es.perturb(x, state))
            updates, state = tx.update(f, state, x)
            return (x + updates, state), None

        x = jnp.zeros(size)
        return loss(jax.lax.scan(step, (x, tx.init(x)), length=steps)[0][0])

    both = jax.jit(lambda: (run(0.5), run(1.0)))()
    best = 0.5 * np.sum(np.square(a @ np.linalg.lstsq(a, np.ones(80), rcond=None)[0] - 1.0))
    start = float(loss(jnp.zeros(size)))
    assert both[0] - best < 0.6 * (both[1] - best), both
    assert both[0] < start


def test_sixteen_bit_leaves_empty_leaves_and_none():
    params = {"a": jnp.ones(2, jnp.bfloat16), "e": jnp.zeros((0, 3)), "n": None}
    es = optkit.guided_es(4, sigma=0.5)
    state = es.guide(es.init(params), params)
    updates, state = es.update(fitness(1, 4), state, params)
    assert updates["a"].dtype == jnp.bfloat16
    assert state.es_surrogates["a"].dtype == jnp.float32
    assert es.perturb(params, state)["e"].shape == (4, 0, 3)


def test_wrong_use_is_answered():
    es, state = guided(np.eye(SIZE)[:1])
    for said, call in {
        "is odd": partial(optkit.guided_es, 5, sigma=0.1),
        "alpha=1.5": partial(optkit.guided_es, 4, sigma=0.1, alpha=1.5),
        "subspace=0": partial(optkit.guided_es, 4, sigma=0.1, subspace=0),
        "needs the parameters": partial(es.update, fitness(0), state),
        r"a: shape \(3,\)": partial(es.guide, state, {"a": np.zeros(2), "b": np.zeros((2, 2))}),
        "holds 0 of": partial(es.guide, optax.sgd(0.1).init(PARAMS), PARAMS),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()
