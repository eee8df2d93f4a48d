"""Every wrapper around every kind of base: a sign, an adaptive and a matrix method, and Optax's."""

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from tests.conformance.methods import BASES, WRAPPERS, Method, step
from tests.conformance.methods import method as method_named
from tests.conformance.trees import assert_close, assert_finite, assert_same

PAIRS = [(name, base) for name in WRAPPERS for base in BASES]


@pytest.fixture(scope="module", params=PAIRS, ids=" of ".join)
def pair(request: pytest.FixtureRequest) -> Method:
    return method_named(*request.param)


def test_pair_traces_to_the_types_it_has(pair: Method) -> None:
    """What jit and scan need; that compiled numbers are the same is tested around one base."""
    params = pair.params()
    state = pair.tx.init(params)
    updates, after = jax.eval_shape(pair.tx.update, pair.grads(0), state, params)
    for got, want in ((updates, params), (after, state)):
        assert jax.tree.structure(got) == jax.tree.structure(want)
        types = [(x.shape, x.dtype) for x in jax.tree.leaves(got)]
        assert types == [(x.shape, x.dtype) for x in jax.tree.leaves(want)]


@pytest.mark.sweep
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrapped_matrix_method_compiles_to_the_same_numbers(name: str) -> None:
    pair = method_named(name, "matrix")
    params = pair.params()
    _, _, updates = step(pair.tx, pair.tx.init(params), params, pair.grads(0))
    assert_close(updates, pair.eager[0][0])


@pytest.mark.sweep
def test_pair_keeps_the_dtype_of_updates(pair: Method) -> None:
    for dtype in (jnp.bfloat16, jnp.float16):
        params = pair.params(dtype=dtype)
        state = jax.eval_shape(pair.tx.init, params)
        updates, after = jax.eval_shape(pair.tx.update, params, state, params)
        kept = jnp.float32 if pair.is_float32 else dtype
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(kept)}
        for new, old in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert new.dtype == old.dtype


@pytest.mark.sweep
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_pair_stays_finite(pair: Method, scale: float) -> None:
    params = pair.params()
    state = pair.tx.init(params)
    with jax.disable_jit(pair.entry.family == "accumulation"):
        for size in (scale, 1.0):
            updates, state = pair.tx.update(pair.grads(0, scale=size), state, params)
            assert_finite(updates)


def test_pair_under_a_mask(pair: Method) -> None:
    whole = pair.whole("up/kernel", "up/bias")
    tx = optax.masked(pair.tx, lambda p: optkit.tree.map_with_path(lambda q, _: q in whole, p))
    params, grads = pair.params(), pair.grads(0)
    with jax.disable_jit(pair.entry.family == "accumulation"):
        updates, _ = tx.update(grads, tx.init(params), params)
    assert_close(updates["up"], pair.eager[0][0]["up"])
    for part in {path.split("/")[0] for path in whole}:
        updates[part] = grads[part]
    assert_same(updates, grads)


def test_pair_state_round_trip_by_name(pair: Method) -> None:
    _, state = pair.eager
    template = pair.tx.init(pair.params())
    assert_same(optkit.restore_state(template, optkit.export_state(state)), state)


def test_two_wrappers_nest(pair: Method) -> None:
    tx = optkit.skip_nonfinite(optkit.in_float32(pair.tx))
    with jax.disable_jit(pair.entry.family == "accumulation"):
        updates, _ = pair.run(tx, steps=1)
    assert_close(updates[0], pair.eager[0][0])
