"""jit, vmap, scan, accumulation, abstract init, donation, no second compilation."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from optkit.tree import leaf_bytes
from tests.conformance.methods import TRACES, Method, step
from tests.conformance.trees import PAIR, assert_close, assert_same, described


@pytest.mark.sweep
def test_compiled_equals_eager(method: Method) -> None:
    updates, state = method.eager
    for got, want in zip(method.compiled, updates, strict=False):
        assert_close(got[2], want)
    assert_close(method.compiled[1][0], state)


def test_three_steps_trace_once(method: Method) -> None:
    assert method.compiled
    # None where a test before this one, in the same process, has taken this very step.
    assert method.traces <= 1 <= TRACES[method.tx]


def test_an_equal_optimizer_does_not_compile_again(method: Method) -> None:
    if "transformations" in method.hyperparameters:
        return  # a mapping has no hash: its caller keeps the object
    again = method.build()
    assert again is method.tx
    traces = []
    for tx in (method.tx, again):
        params = method.params()
        step(tx, tx.init(params), params, method.grads(0))
        traces.append(TRACES[tx])
    assert traces[0] == traces[1]


def test_donation_of_fresh_state_and_parameters_aliases_everything(method: Method) -> None:
    params = method.params()
    state = method.tx.init(params)
    lowered = step.lower(method.tx, state, params, method.grads(0))
    aliased = lowered.compile().memory_analysis().alias_size_in_bytes
    leaves = [x for x in jax.tree.leaves((state, params)) if x.ndim]
    assert aliased >= sum(map(leaf_bytes, leaves))


def test_abstract_init_gives_the_concrete_shapes_and_dtypes(method: Method) -> None:
    params = method.params()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    abstract, concrete = jax.eval_shape(method.tx.init, shapes), method.tx.init(params)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert described(abstract) == described(concrete)


def test_state_keeps_its_shapes_and_dtypes(method: Method) -> None:
    before, after = method.tx.init(method.params()), method.compiled[-1][0]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert described(before) == described(after)


@pytest.mark.sweep
def test_vmap_over_a_population(method: Method) -> None:
    def two_steps(params: Any, first: Any, second: Any) -> tuple:
        out, state = method.tx.update(first, method.tx.init(params), params)
        params = optax.apply_updates(params, out)
        return out, *method.tx.update(second, state, params)

    members = [
        (method.params(PAIR), method.grads(0, PAIR), method.grads(1, PAIR)),
        (method.grads(2, PAIR), method.grads(1, PAIR), method.grads(0, PAIR)),
    ]
    population = jax.tree.map(lambda *x: jnp.stack(x), *members)
    got = jax.jit(jax.vmap(two_steps))(*population)
    for index, member in enumerate(members):
        want = two_steps(*member)
        assert_close(jax.tree.map(operator.itemgetter(index), got), want)


@pytest.mark.sweep
def test_scan_equals_a_loop(method: Method) -> None:
    states, params, updates = method.scanned
    tx, target = method.tx, method.grads(0)
    at = method.params()
    state = tx.init(at)
    for time in range(2):
        grads = jax.tree.map(jnp.subtract, at, target)
        out, state = method.update(tx, grads, state, at, value_fn=method.distance)
        at = optax.apply_updates(at, out)
        pick = operator.itemgetter(time)
        assert_close(jax.tree.map(pick, updates), out)
        assert_close(jax.tree.map(pick, (states, params)), (state, at))


@pytest.mark.sweep
def test_accumulation_steps_on_the_mean(method: Method) -> None:
    params = method.params(PAIR)
    first, second = method.grads(0, PAIR), method.grads(1, PAIR)
    # Optax's own takes branches whose results have to be alike: tracing it says so.
    theirs = optax.MultiSteps(method.tx, 2).gradient_transformation()
    out, _ = jax.eval_shape(theirs.update, first, theirs.init(params), params)
    assert jax.tree.structure(out) == jax.tree.structure(params)

    tx = optkit.accumulate_gradients(method.tx, 2)
    state = tx.init(params)
    traced = jax.eval_shape(tx.update, first, state, params)
    with jax.disable_jit():  # its conditions run as Python
        waiting, after = tx.update(first, state, params)
        got, _ = tx.update(second, after, params)
    assert described(traced) == described((waiting, after)) == described((waiting, state))
    assert_same(waiting, jax.tree.map(jnp.zeros_like, waiting))
    mean = jax.tree.map(lambda a, b: (a + b) / 2, first, second)
    with jax.disable_jit():
        want, _ = method.tx.update(mean, method.tx.init(params), params)
    assert_close(got, want)


def test_fresh_states_share_no_buffer(method: Method) -> None:
    params = method.params()
    leaves = jax.tree.leaves((params, method.tx.init(params)))
    pointers = [x.unsafe_buffer_pointer() for x in leaves if x.ndim and x.size]
    assert len(set(pointers)) == len(pointers)
