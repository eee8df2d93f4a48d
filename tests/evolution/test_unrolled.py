"""PES, NRES and truncated ES: what their estimates are of, and whose noise is when drawn anew."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from optkit.evolution.unrolling import UnrolledState

PARAMS = {"a": np.array([0.3, -0.2], np.float32), "b": np.float32(0.5)}
MAKERS = {name: getattr(optkit, name) for name in ("pes", "nres", "truncated_es")}
each = pytest.mark.parametrize("name", sorted(MAKERS))
OPTIONS = {"sigma": 0.5, "horizon": 30, "truncation": 10, "key": 5}


def flat(tree) -> np.ndarray:
    """Rows of numbers of leaves ``(K, *shape)``."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(x.shape[0], -1) for x in leaves], axis=1)


def vector(tree) -> np.ndarray:
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def fitness(seed: int, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


@pytest.mark.sweep
@each
@pytest.mark.parametrize("staggered", [False, True])
def test_the_estimate_is_that_of_the_paper(name, staggered):
    es = MAKERS[name](6, **OPTIONS, staggered=staggered)
    state, step = es.init(PARAMS), jax.jit(es.update)
    inner = np.array([0, 10, 20] if staggered else [0, 0, 0])
    sums, held, seen = np.zeros((3, 3)), None, []
    for t in range(7):
        np.testing.assert_array_equal(es.begins(state), np.repeat((inner == 0) | (t == 0), 2))
        members = flat(es.perturb(PARAMS, state))
        eps = members[0::2] - vector(PARAMS)
        np.testing.assert_allclose(members[1::2], vector(PARAMS) - eps, atol=1e-6)
        if held is not None:
            same = np.abs(eps - held).max(axis=1) < 1e-6
            np.testing.assert_array_equal(same, (name == "nres") & (inner > 0))
        held, seen = eps, [*seen, eps]
        sums = sums + eps
        direction = sums if name == "pes" else eps
        f = fitness(t)
        want = -((f[0::2] - f[1::2]) @ direction) / (6 * 0.25)
        got, state = step(f, state, PARAMS)
        np.testing.assert_allclose(vector(got), want, atol=2e-6)
        inner = inner + 10
        sums[inner >= 30] = 0.0
        inner[inner >= 30] = 0
    assert np.std(np.concatenate(seen)) == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("staggered", [False, True])
def test_replay_is_storing(staggered):
    def sigma(step):
        return 0.5 / (1.0 + step)

    options = {**OPTIONS, "sigma": sigma, "staggered": staggered}
    kept = optkit.pes(6, **options)
    state, params = kept.init(PARAMS), PARAMS
    forms = [optkit.pes(6, **options, accumulate="replay", chunk=chunk) for chunk in (None, 2)]
    others = [form.init(PARAMS) for form in forms]
    assert others[0].es_sum is None
    steps = [jax.jit(form.update) for form in (kept, *forms)]
    for t in range(4):
        done = np.array([t == 1, False, False])
        extra = {"done": done, "after": fitness(t + 10)}
        want, state = steps[0](fitness(t), state, params, **extra)
        for i in range(2):
            got, others[i] = steps[i + 1](fitness(t), others[i], params, **extra)
            np.testing.assert_allclose(vector(got), vector(want), rtol=1e-4, atol=1e-5)


def test_ends_within_a_truncation():
    es = optkit.pes(6, sigma=0.5)
    state, step = es.init(PARAMS), jax.jit(es.update)
    _, state = step(fitness(0), state, PARAMS)
    past, now = flat(state.es_sum), 0.5 * flat(es.noise(PARAMS, state))
    f, after, done = fitness(1), fitness(2), np.array([True, False, True])
    after = np.where(np.repeat(done, 2), after, 0.0).astype(np.float32)
    got, new = step(f, state, PARAMS, done=done, after=after)
    d, e = f[0::2] - f[1::2], after[0::2] - after[1::2]
    want = -(d @ (past + now) + e @ now) / (6 * 0.25)
    np.testing.assert_allclose(vector(got), want, atol=1e-5)
    # What has begun within the truncation has been perturbed by its noise alone.
    np.testing.assert_allclose(flat(new.es_sum)[done], now[done], atol=1e-6)
    np.testing.assert_allclose(flat(new.es_sum)[~done], (past + now)[~done], atol=1e-6)
    # What has ended with the truncation has been perturbed by nothing yet.
    _, ended = step(f, state, PARAMS, done=done)
    assert np.all(flat(ended.es_sum)[done] == 0.0)
    assert es.begins(ended).tolist() == np.repeat(done, 2).tolist()


@each
def test_fed_members_and_noise_are_what_counts(name):
    es = MAKERS[name](6, **OPTIONS)
    state, step = es.init(PARAMS), jax.jit(es.update)
    plain, kept = step(fitness(3), state, PARAMS)
    for fed in ({"noise": es.noise(PARAMS, state)}, {"members": es.perturb(PARAMS, state)}):
        got, held = step(fitness(3), state, PARAMS, **fed)
        np.testing.assert_allclose(vector(got), vector(plain), atol=5e-6)
        if name == "pes":
            np.testing.assert_allclose(flat(held.es_sum), flat(kept.es_sum), atol=1e-6)


def linear(theta, start):
    """An inner problem that is linear in its state: s <- 0.8 s + theta . c; fitness is s."""
    return 0.8 * start + theta @ jnp.array([1.0, -2.0])


def estimates(name: str, keys: int, rounds: int) -> np.ndarray:
    """Mean pseudo-gradients over a whole inner problem of 6 steps, one truncation a step."""
    options = {"sigma": 0.1, "horizon": 6, "truncation": 1}

    def run(key):
        es = MAKERS[name](2 * keys, **options, key=key)
        params = jnp.zeros(2)

        def truncation(carry, _):
            state, inner = carry
            inner = jnp.where(es.begins(state), 0.0, inner)
            inner = linear(es.perturb(params, state), inner)
            g, state = es.update(inner, state, params)
            return (state, inner), g

        start = (es.init(params), jnp.zeros(2 * keys))
        return jnp.sum(jax.lax.scan(truncation, start, None, length=6)[1], axis=0)

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), rounds)))


def test_pes_and_nres_are_unbiased_on_a_linear_inner_problem_and_truncated_es_is_not():
    # The sum of all fitnesses is theta . c * sum over steps of (1 + 0.8 + ...).
    whole = sum((1 - 0.8 ** (t + 1)) / 0.2 for t in range(6))
    c = np.array([1.0, -2.0])
    for name, factor in (("pes", whole), ("nres", whole), ("truncated_es", 6.0)):
        got = -estimates(name, keys=32, rounds=64)
        error = got.std(axis=0) / np.sqrt(len(got))
        assert np.all(np.abs(got.mean(axis=0) - factor * c) < 4.5 * error), name
        assert np.all(error < 0.05 * whole * np.abs(c)), name
    assert whole > 15.0


def test_nres_is_evolution_strategies_where_a_truncation_is_the_whole():
    options = {**OPTIONS, "truncation": 30}
    nres, plain = optkit.nres(6, **options), optkit.truncated_es(6, **options)
    one, two = nres.init(PARAMS), plain.init(PARAMS)
    for t in range(3):
        a, one = nres.update(fitness(t), one, PARAMS)
        b, two = plain.update(fitness(t), two, PARAMS)
        np.testing.assert_allclose(vector(a), vector(b), atol=1e-6)


def test_flat_fitness_moves_nothing_and_lost_members_can_be_left_out():
    es = optkit.pes(6, **OPTIONS, nonfinite="zero")
    state = es.init(PARAMS)
    assert np.all(vector(es.update(np.full(6, 3.0), state, PARAMS)[0]) == 0.0)
    f = np.array([1.0, np.nan, 2.0, 1.0, 3.0, 3.0], np.float32)
    got = es.update(f, state, PARAMS)[0]
    want = -flat(es.noise(PARAMS, state))[1] / (6 * 0.5)
    np.testing.assert_allclose(vector(got), want, atol=1e-6)


@each
def test_wrong_use_is_answered(name):
    make = MAKERS[name]
    es = make(6, **OPTIONS)
    update = partial(es.update, fitness(0), es.init(PARAMS))
    for said, call in {
        "is odd": partial(make, 5, sigma=0.1),
        "sigma=0": partial(make, 4, sigma=0.0),
        "horizon=5 must be": partial(make, 4, sigma=0.1, horizon=5, truncation=10),
        "need the horizon": partial(make, 4, sigma=0.1, staggered=True),
        "needs the parameters": update,
        r"not bool \(3,\)": partial(update, PARAMS, done=np.zeros(6, bool)),
        "tell by done=": partial(update, PARAMS, after=fitness(1)),
        r"a: shape \(3, 2\)": partial(update, PARAMS, noise={"a": np.zeros(3), "b": np.zeros(3)}),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()


def test_what_only_one_form_can_do():
    es = optkit.nres(6, **OPTIONS)
    done = np.zeros(3, bool)
    with pytest.raises(ValueError, match="take pes"):
        es.update(fitness(0), es.init(PARAMS), PARAMS, done=done, after=fitness(1))
    replayed = optkit.pes(6, **OPTIONS, accumulate="replay")
    state = replayed.init(PARAMS)
    assert isinstance(state, UnrolledState)
    with pytest.raises(ValueError, match='accumulate="store"'):
        replayed.update(fitness(0), state, PARAMS, members=replayed.perturb(PARAMS, state))
