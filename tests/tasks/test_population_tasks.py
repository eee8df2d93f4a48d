"""Tasks for populations: fitness of members is what their own episodes or answers say."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from optkit.evolution import evaluate, integer
from optkit.tasks import TaskOptionError, UnknownTask, digits_data, population

STEPS, MEMBERS, EPISODES = 30, 4, 2


@pytest.fixture(scope="module")
def cartpole():
    task = population.get("cartpole", hidden=4, layers=1, episodes=EPISODES, steps=STEPS)
    return task, jax.jit(task.fitness), task.init(jax.random.key(1))


def spread(params, scale):
    """Members that differ much, so that poles fall at different times."""
    random = np.random.default_rng(3)
    return jax.tree.map(
        lambda x: x[None] + scale * random.standard_normal((MEMBERS, *x.shape), np.float32), params
    )


def walked(task, params, keys):
    """The return of one episode: an environment in a Python loop that ends at its first end."""
    import gymnax

    env, settings = gymnax.make("CartPole-v1")
    observation, state = env.reset(jax.random.fold_in(keys, STEPS), settings)
    total = 0.0
    for time in range(STEPS):
        x = np.asarray(observation, np.float64)
        for name in ("hidden_0", "head"):
            x = x @ np.asarray(params[name]["kernel"], np.float64) + params[name]["bias"]
            x = np.tanh(x) if name == "hidden_0" else x
        key = jax.random.fold_in(keys, time)
        observation, state, reward, ended, _, _ = env.step(key, state, int(x.argmax()), settings)
        total += float(reward)
        if ended:
            break
    return total


def test_a_fitness_is_the_mean_return_until_the_first_end(cartpole):
    task, fitness, params = cartpole
    members, key = spread(params, 2.0), task.batch(0, 0)
    pairs = jax.random.split(key, (MEMBERS // 2, EPISODES))
    expected = [
        np.mean([walked(task, jax.tree.map(lambda x: x[i], members), k) for k in pairs[i // 2]])  # noqa: B023
        for i in range(MEMBERS)
    ]
    np.testing.assert_array_equal(fitness(members, key), expected)
    assert min(expected) < STEPS  # some fell, and nothing was counted after


def test_partners_live_through_the_same_episodes(cartpole):
    task, fitness, params = cartpole
    alike = jax.tree.map(lambda x: jnp.zeros((MEMBERS, *x.shape)), params)  # push left, and fall
    found = np.stack([fitness(alike, task.batch(0, step)) for step in range(5)]).reshape(5, -1, 2)
    np.testing.assert_array_equal(found[..., 0], found[..., 1])
    assert len({*found[..., 0].flat}) > 1


def test_shared_and_materialised_populations_have_the_same_fitness(cartpole):
    task, fitness, params = cartpole
    es = optkit.eggroll(MEMBERS, sigma=1.0)
    state, key = es.init(params), task.batch(0, 0)
    measure = jax.jit(lambda *args: evaluate(es, task.fitness, *args, in_axes=None))
    lazy = measure(params, state, key)
    np.testing.assert_array_equal(lazy, fitness(es.perturb(params, state), key))


def test_a_generation_is_decided_by_seed_and_number(cartpole):
    task = cartpole[0]
    words = [jax.random.key_data(task.batch(*at)).tolist() for at in ((0, 1), (0, 1), (0, 2))]
    assert words[0] == words[1] != words[2]
    assert words[0] != jax.random.key_data(task.batch(1, 1)).tolist()


def test_the_score_is_that_of_one_model_and_stays(cartpole):
    task, _, params = cartpole
    found = task.evaluate(params)
    assert found == task.evaluate(params)
    assert 1 <= found["return_min"] <= found[task.metric] <= found["return_max"] <= STEPS


@pytest.mark.parametrize("name", ["pendulum", "acrobot", "breakout"])
def test_other_environments_trace(name):
    task = population.get(name, hidden=4, layers=1, steps=3)
    members = jax.eval_shape(lambda key: jax.vmap(task.init)(jax.random.split(key, 4)), _key())
    assert jax.eval_shape(task.fitness, members, _key()).shape == (4,)


def _key():
    return jax.random.key(0)


def test_actions_reach_both_ends_of_their_range():
    import gymnax

    from optkit.tasks.control import _actions

    env, settings = gymnax.make("Pendulum-v1")
    count, act = _actions(env.action_space(settings))
    assert count == 1
    np.testing.assert_allclose(act(jnp.array([[-30.0], [0.0], [30.0]])), [[-2.0], [0.0], [2.0]])


def test_digits_count_right_answers():
    images = digits_data.load().train
    task = population.get("digits", width=4, batch=len(images["labels"]))
    members = spread(task.init(_key()), 0.3)
    flat = np.asarray(images["images"], np.float64).reshape(-1, 64)
    for member, found in enumerate(jax.jit(task.fitness)(members, _key())):
        x = flat
        for name in ("input", "hidden", "head"):
            x = x @ np.asarray(members[name]["kernel"][member], np.float64)
            x = x + np.asarray(members[name]["bias"][member])
            x = x if name == "head" else np.maximum(x, 0)
        right = np.sum(x.argmax(axis=1) == images["labels"])
        assert abs(float(found) * len(flat) - right) <= 1  # a tie may be rounded away


def test_a_task_with_a_loss_is_one_for_populations():
    task = population.get("regression", inputs=3, outputs=2, batch=4)
    given = optkit.tasks.get("regression", inputs=3, outputs=2, batch=4)
    members = spread(given.init(_key()), 1.0)
    found = task.fitness(members, task.batch(0, 2))
    for member in range(MEMBERS):
        loss, _ = given.loss(jax.tree.map(lambda x: x[member], members), given.batch(0, 2))  # noqa: B023
        np.testing.assert_allclose(found[member], -loss, rtol=1e-5)
    assert task.evaluate(given.init(_key())) == given.evaluate(given.init(_key()))


def test_wrong_use_is_answered(monkeypatch):
    with pytest.raises(UnknownTask, match="Did you mean 'cartpole'"):
        population.get("cartpol")
    with pytest.raises(TaskOptionError, match=r"no option 'hiden'. Did you mean 'hidden'"):
        population.get("cartpole", hiden=3)
    with pytest.raises(TaskOptionError, match="steps=0"):
        population.get("cartpole", steps=0)
    with pytest.raises(TaskOptionError, match="at most 1437"):
        population.get("digits", batch=2000)
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ImportError, match=r'pip install "optkit\[evolve\]"'):
        population.get("cartpole")


def test_members_are_counted():
    tree = population.as_population({"w": jnp.zeros((3, 2))})
    assert population.as_population(tree) is tree
    assert population.count_members(tree) == 3
    with pytest.raises(ValueError, match="no leaf with an axis of members"):
        population.count_members({"w": jnp.zeros(3)})


@pytest.mark.slow
def test_int8_bytes_are_read_from_an_empty_state():
    task = population.get("int8_bytes", width=8, streams=2, tokens=4)
    es, params = optkit.egg(MEMBERS), task.init(_key())
    members = es.perturb(params, es.init(params))
    data = task.batch(0, 1)
    found = jax.jit(task.fitness)(members, data)
    hidden = integer.egg_hidden(params, MEMBERS)
    expected, _ = jax.jit(integer.egg_scores)(members, data["tokens"], hidden)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == jnp.int32
    with pytest.raises(ValueError, match="integer populations alone: take egg"):
        task.fitness(params, data)
