"""Ask and tell: the same run as by hand, and the best members ever told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.evolution import ask_tell, openai_es, search

ES = openai_es(6, sigma=0.3)
LOOP = ask_tell(ES, optax.adam(0.1), keep=3)
TELL = jax.jit(LOOP.tell)
PARAMS = {"x": np.zeros(2, np.float32)}


def test_it_is_the_chain():
    tx = optax.chain(ES, optax.adam(0.1))
    params, opt, state = PARAMS, tx.init(PARAMS), LOOP.init(PARAMS)
    for t in range(3):
        f = np.random.default_rng(t).normal(size=6).astype(np.float32)
        members = LOOP.ask(state)
        np.testing.assert_array_equal(members["x"], ES.perturb(params, opt)["x"])
        updates, opt = jax.jit(tx.update)(f, opt, params)
        params = optax.apply_updates(params, updates)
        state = TELL(state, f)
        np.testing.assert_allclose(state.params["x"], params["x"], atol=1e-7)
    assert int(state.evaluations) == 18


@pytest.mark.parametrize("maximize", [True, False])
def test_the_best_ever_are_kept_in_order(maximize):
    es = openai_es(6, sigma=0.3, maximize=maximize)
    loop = ask_tell(es, optax.adam(0.1), keep=3)
    tell, rng = jax.jit(loop.tell), np.random.default_rng(0)
    state, seen = loop.init(PARAMS), []
    for t in range(4):
        f = rng.normal(size=6).astype(np.float32)
        if t == 1:
            f[2] = np.nan
        x = np.asarray(loop.ask(state)["x"])
        seen += [(float(v), x[i]) for i, v in enumerate(f) if np.isfinite(v)]
        state = tell(state, f)
        want = sorted(seen, key=lambda pair: -pair[0] if maximize else pair[0])[:3]
        members, fitness = loop.top(state)
        np.testing.assert_array_equal(fitness, np.array([v for v, _ in want], np.float32))
        np.testing.assert_array_equal(members["x"], np.stack([m for _, m in want]))
    assert loop.top(state, 1)[0]["x"].shape == (1, 2)


def test_without_a_judged_member_nothing_is_best():
    _, fitness = LOOP.top(TELL(LOOP.init(PARAMS), np.full(6, np.nan, np.float32)))
    assert fitness.tolist() == [-np.inf] * 3


def test_members_that_were_changed_are_told():
    loop = ask_tell(search.xnes(4, sigma=0.5))
    state = loop.init(PARAMS)
    members = jax.tree.map(lambda x: jnp.round(x, 1), loop.ask(state))
    state = loop.tell(state, jnp.arange(4.0), members)
    np.testing.assert_array_equal(loop.top(state)[0]["x"][0], members["x"][3])


def test_it_scans_and_vmaps_over_seeds():
    def run(seed):
        loop = ask_tell(search.sep_cma_es(8, sigma=0.5, key=jax.random.key(seed)))

        def generation(state, _):
            f = -jnp.sum((loop.ask(state)["x"] - 1.0) ** 2, axis=1)
            return loop.tell(state, f), None

        return jax.lax.scan(generation, loop.init(PARAMS), None, length=30)[0].best_fitness

    best = jax.jit(jax.vmap(run))(jnp.arange(3))
    assert best.shape == (3, 1)
    assert len(set(best.ravel().tolist())) == 3
    assert np.all(best > -1e-3)


def test_wrong_use_is_answered():
    with pytest.raises(TypeError, match="population method"):
        ask_tell(optax.adam(0.1))
    with pytest.raises(ValueError, match="keep=0"):
        ask_tell(ES, keep=0)
    with pytest.raises(ValueError, match="3 are kept"):
        LOOP.top(LOOP.init(PARAMS), 4)


def test_the_direction_is_that_of_the_strategy() -> None:
    loop = ask_tell(optkit.mezo())
    state = loop.tell(loop.init({"x": jnp.zeros(2)}), jnp.array([1.0, 2.0]))
    assert float(loop.top(state)[1][0]) == 1.0
    with pytest.raises(ValueError, match="maximize=True, and the strategy has maximize=False"):
        ask_tell(optkit.mezo(), maximize=True)


def test_members_are_refused_where_nothing_learns_from_them() -> None:
    loop = ask_tell(optkit.snes(4))
    state = loop.init({"x": jnp.zeros(2)})
    with pytest.raises(ValueError, match="draws its noise again"):
        loop.tell(state, jnp.zeros(4), loop.ask(state))
    with pytest.raises(TypeError, match="no parameters"):
        ask_tell(optkit.egg(4)).init({"x": jnp.zeros((2, 2), jnp.int8)})


@pytest.mark.parametrize("make", [optkit.cma_es, optkit.sep_cma_es, optkit.xnes])
def test_a_generation_without_any_fitness_moves_nothing(make) -> None:
    es, params = make(4, sigma=0.3), {"x": jnp.zeros(3)}
    state = es.init(params)
    step, after = es.update(jnp.full(4, jnp.nan), state, params)
    assert not step["x"].any() and int(after.es_step) == 1
    assert float(after.es_sigma) == float(state.es_sigma)
