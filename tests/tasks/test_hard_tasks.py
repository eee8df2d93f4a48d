"""Tasks that gradients can't learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit import tasks
from optkit.tasks import hard_digits, maxsat

# The leaves that a gradient does not see.
BLIND = {
    "staircase": [("hidden", "kernel"), ("hidden", "bias")],
    "int8": [],
    "spiking": [("hidden", "kernel"), ("hidden", "bias")],
    "attention": [("query", "kernel"), ("key", "kernel")],
    "moe": [("gate", "kernel"), ("gate", "bias")],
}


@pytest.mark.sweep
@pytest.mark.parametrize("operator", hard_digits.OPERATORS)
def test_hard_networks_have_losses_that_gradients_do_not_see(operator):
    task = tasks.get("hard_digits", operator=operator, width=8, batch=16)
    params, batch = task.init(jax.random.key(0)), task.batch(0, 0)
    (value, metrics), gradient = jax.jit(jax.value_and_grad(task.loss, has_aux=True))(params, batch)
    assert value.shape == () and bool(jnp.isfinite(value)) and 0 <= float(metrics["error"]) <= 1
    for layer, leaf in BLIND[operator]:
        assert not np.any(gradient[layer][leaf])
    # Yet those leaves matter.
    shaken = jax.tree.map(lambda x: x + 0.5 * np.sin(np.arange(x.size)).reshape(x.shape), params)
    moved = {
        name: {
            leaf: shaken[name][leaf] if (name, leaf) in BLIND[operator] else value
            for leaf, value in layer.items()
        }
        for name, layer in params.items()
    }
    population = jax.tree.map(lambda *x: jnp.stack(x), params, moved)
    losses = jax.jit(jax.vmap(lambda p: task.loss(p, batch)[0]))(population)
    np.testing.assert_allclose(losses[0], value, rtol=1e-4)
    assert not BLIND[operator] or abs(float(losses[1] - losses[0])) > 1e-4
    assert task.parameters == sum(x.size for x in jax.tree.leaves(params))
    assert set(task.evaluate(params)) == {"loss", "error"}


def test_int8_takes_255_levels():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((50, 40)), jnp.float32)
    rounded = hard_digits._rounded(x, (0, 1))
    assert len(np.unique(rounded)) <= 255
    assert float(jnp.abs(rounded - x).max()) <= float(jnp.abs(x).max()) / 254 * (1 + 1e-4)
    assert not np.any(hard_digits._rounded(0 * x, (0, 1)))


def slow_unsatisfied(formula, values):
    return sum(
        not any((values[v] > 0) == s for v, s in zip(clause, signs, strict=True))
        for clause, signs in zip(formula.variables, formula.signs, strict=True)
    )


FORMULA = maxsat.instance(6, 5.0, 1)
unsatisfied = jax.jit(FORMULA.unsatisfied)
changed = jax.jit(FORMULA.changed)


@given(st.integers(0, 2**31))
def test_a_change_is_that_of_the_whole_count(seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(6).astype(np.float32)
    index, new = rng.permutation(8)[:3].astype(np.int32), rng.standard_normal(3).astype(np.float32)
    after = values.copy()
    inside = index < 6
    after[index[inside]] = new[inside]
    assert int(unsatisfied(values)) == slow_unsatisfied(FORMULA, values)
    difference = slow_unsatisfied(FORMULA, after) - slow_unsatisfied(FORMULA, values)
    assert int(changed(values, index, new)) == difference


def test_clauses_are_of_three_variables_each_found_where_it_is():
    formula = maxsat.instance(50, 4.27, 3)
    assert formula.variables.shape == (213, 3)
    assert all(len(set(clause)) == 3 for clause in formula.variables.tolist())
    for variable, own in enumerate(formula.members):
        expected = np.flatnonzero((formula.variables == variable).any(1))
        np.testing.assert_array_equal(np.sort(own[own < 213]), expected)


def test_maxsat_is_a_task_of_signs():
    task = tasks.get("maxsat", variables=30)
    params = task.init(jax.random.key(0))
    scaled = jax.tree.map(lambda x: 7 * x, params)
    assert task.evaluate(params) == task.evaluate(scaled)
    assert float(task.loss(params, task.batch(0, 0))[0]) == task.evaluate(params)["unsatisfied"]


def test_wrong_options_say_what_to_do():
    with pytest.raises(tasks.TaskOptionError, match="Did you mean 'spiking'"):
        tasks.get("hard_digits", operator="spikin")
    with pytest.raises(tasks.TaskOptionError, match="at least 3"):
        tasks.get("maxsat", variables=2)
    assert tasks.names(hard=True) == ["hard_digits", "maxsat"]
    with pytest.raises(tasks.UnknownTask, match="Did you mean 'maxsat'"):
        tasks.get("maxsatt")
