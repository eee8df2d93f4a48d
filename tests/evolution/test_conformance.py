"""What every catalogued strategy keeps to: one suite over the catalogue."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.evolution import Strategy

STRATEGIES = {entry.name: entry for entry in optkit.catalogue.entries(kind="strategy")}
TOLD = [name for name, entry in STRATEGIES.items() if "sigma" in entry.hyperparameters()]
SEARCHES = {"cma_es", "sep_cma_es", "xnes"}  # told the first sigma alone
INTEGER = {"egg"}  # moves int8 parameters
PARAMS = {"dense": {"bias": jnp.array([0.5, -1.0]), "kernel": jnp.ones((3, 2)) / 2}, "scale": 1.5}


class Method:
    """A strategy, its chain, and what runs it."""

    def __init__(self, name: str) -> None:
        entry = STRATEGIES[name]
        self.es = entry.factory(**entry.example)
        self.params: Any = jax.tree.map(jnp.asarray, PARAMS)
        if name in INTEGER:
            whole = jax.tree.map(lambda x: (16 * x).astype(jnp.int8), self.params)
            self.params = {"dense": whole["dense"]}  # integer noise is of vectors and matrices

    @functools.cached_property
    def state(self) -> Any:
        return self.es.init(self.params)

    @functools.cached_property
    def update(self) -> Any:
        return jax.jit(self.es.update)

    @functools.cached_property
    def fitness(self) -> jax.Array:
        members = jax.eval_shape(self.es.perturb, self.params, self.state)
        # Some count their members only once they know the parameters.
        size = self.es.population or jax.tree.leaves(members)[0].shape[0]
        return jnp.asarray(np.random.default_rng(7).standard_normal(size), jnp.float32)


@functools.cache
def method(name: str) -> Method:
    return Method(name)


@pytest.fixture(params=list(STRATEGIES))
def made(request: pytest.FixtureRequest) -> Method:
    return method(request.param)


def assert_same(a: Any, b: Any, atol: float = 0.0) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=atol, rtol=atol)


def test_members_have_the_shapes_and_dtypes_of_the_parameters(made: Method) -> None:
    assert isinstance(made.es, Strategy)
    if made.es is method("egg").es:
        pytest.skip("what an integer member computes is rounded on the way: it has no matrix")
    members = jax.eval_shape(made.es.perturb, made.params, made.state)
    size = made.fitness.size
    wanted = jax.tree.map(lambda p: ((size, *p.shape), p.dtype), made.params)
    assert jax.tree.map(lambda m: (m.shape, m.dtype), members) == wanted


@pytest.mark.sweep
def test_updates_fit_the_parameters_and_the_state_keeps_its_types(made: Method) -> None:
    g, state = made.update(made.fitness, made.state, made.params)
    types = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert types(g) == types(made.params)
    assert types(state) == types(made.state)
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(g))
    abstract = jax.eval_shape(made.es.init, made.params)
    assert types(abstract) == types(made.state)


@pytest.mark.sweep
@pytest.mark.slow
def test_jitted_is_eager_and_compiled_once(made: Method) -> None:
    one = made.update(made.fitness, made.state, made.params)
    made.update(made.fitness[::-1], one[1], made.params)
    assert made.update._cache_size() == 1
    with jax.disable_jit():
        again = made.es.update(made.fitness, made.state, made.params)
    assert_same(one, again, atol=2e-5)


@pytest.mark.sweep
def test_runs_inside_a_scan(made: Method) -> None:
    def step(carry: Any, _: None) -> Any:
        params, state = carry
        g, state = made.es.update(made.fitness, state, params)
        return (jax.tree.map(lambda p, u: p - u, params, g), state), None

    run = jax.jit(lambda *carry: jax.lax.scan(step, carry, length=3)[0])
    params, state = run(made.params, made.state)
    assert int(optax.tree_utils.tree_get(state, "es_step")) == 3
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves(params))


@pytest.mark.sweep
def test_a_population_is_a_function_of_the_state(made: Method) -> None:
    draw = jax.jit(made.es.perturb)
    assert_same(draw(made.params, made.state), draw(made.params, made.state))


@pytest.mark.sweep
def test_the_state_survives_export(made: Method) -> None:
    _, state = made.update(made.fitness, made.state, made.params)
    assert_same(optkit.restore_state(made.state, optkit.export_state(state)), state)


@pytest.mark.sweep
@pytest.mark.parametrize("name", TOLD)
def test_a_sigma_of_nothing_is_refused_or_moves_nothing(name: str) -> None:
    entry = STRATEGIES[name]
    with pytest.raises(ValueError, match="no member would differ"):
        entry.factory(**{**entry.example, "sigma": 0.0})
    ends = optax.linear_schedule(0.5, 0.0, 1)
    if name in SEARCHES:
        with pytest.raises(ValueError, match="adapts its deviation itself"):
            entry.factory(**{**entry.example, "sigma": ends})
        return
    es, made = entry.factory(**{**entry.example, "sigma": ends}), method(name)
    state = es.init(made.params)
    _, state = es.update(made.fitness, state, made.params)
    g, _ = es.update(made.fitness, state, made.params)
    assert float(state.es_sigma) == 0.0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(g))


@pytest.mark.sweep
def test_the_state_is_found_in_a_chain(made: Method) -> None:
    tx = optax.chain(made.es, optax.scale(-1))
    held = tx.init(made.params)
    assert_same(made.es.perturb(made.params, held), made.es.perturb(made.params, made.state))
    with pytest.raises(ValueError, match="holds 0 of"):
        made.es.perturb(made.params, optax.sgd(0.1).init(made.params))


def test_fitness_of_the_wrong_length_is_refused(made: Method) -> None:
    size = made.fitness.size
    with pytest.raises(ValueError, match=rf"\({size + 1},\)"):
        made.es.update(jnp.zeros(size + 1), made.state, made.params)


def test_parameters_are_needed(made: Method) -> None:
    with pytest.raises(ValueError, match="params"):
        made.es.update(made.fitness, made.state)
