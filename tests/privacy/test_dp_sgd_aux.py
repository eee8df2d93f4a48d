"""What a loss says of each example beside its gradient, and states in files that know no keys."""

from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optkit
from optkit.privacy import per_example_clip, private_gradient
from tests.conformance.test_sharding import mesh_of
from tests.privacy.linear import PARAMS, SIZE, batch, flat, loss

NOISY: Any = {"clip": 0.5, "noise_multiplier": 2.0, "expected_batch": 4.0}


def told(params: Any, example: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss, and beside it itself and the inputs doubled."""
    x, _ = example
    value = loss(params, example)
    return value, {"loss": value, "twice": 2.0 * x}


def check(aux: Any, data: Any) -> None:
    """Compares with the loss of one example after the other."""
    x, y = data
    each = [float(loss(PARAMS, (x[i], y[i]))) for i in range(len(x))]
    np.testing.assert_allclose(aux["loss"], each, rtol=1e-5)
    np.testing.assert_array_equal(aux["twice"], 2.0 * x)


@pytest.mark.parametrize("microbatch", [None, 2, 3, SIZE])
def test_each_example_keeps_its_place_and_the_gradient_is_the_same(microbatch: int | None) -> None:
    mask = np.arange(SIZE) != 4  # what is padding is told of as it is
    gradient = private_gradient(told, has_aux=True, microbatch=microbatch, **NOISY)
    (got, aux), state = jax.jit(gradient.__call__)(
        PARAMS, batch(0), gradient.init(0), mask=jnp.asarray(mask)
    )
    check(aux, batch(0))
    plain = private_gradient(loss, microbatch=microbatch, **NOISY)
    want, _ = plain(PARAMS, batch(0), plain.init(0), mask=mask)
    np.testing.assert_allclose(flat(got), flat(want), rtol=1e-5)
    assert int(state.steps) == 1


@pytest.mark.parametrize("microbatch", [None, 1])
def test_devices_tell_of_their_own_examples(microbatch: int | None) -> None:
    gradient = private_gradient(told, has_aux=True, axis_name="x", microbatch=microbatch, **NOISY)
    twice = jax.tree.map(lambda x: np.concatenate([x, x + 1]), batch(1))
    mapped = jax.shard_map(
        gradient, mesh=mesh_of("auto"), in_specs=(P(), P("x"), P()), out_specs=((P(), P("x")), P())
    )
    (_, aux), _ = jax.jit(mapped)(PARAMS, twice, gradient.init(0))
    check(aux, twice)


def test_runs_in_a_batch_get_their_own() -> None:
    gradient = private_gradient(told, has_aux=True, microbatch=3, **NOISY)
    state = gradient.init(0)
    stacked = jax.tree.map(lambda p: jnp.stack([p, p]), PARAMS)
    (_, aux), _ = jax.vmap(lambda p: gradient(p, batch(2), state))(stacked)
    for run in range(2):
        check(jax.tree.map(lambda x, run=run: x[run], aux), batch(2))


def test_a_gradient_may_have_something_beside_it_too() -> None:
    both = jax.grad(told, has_aux=True)
    got = per_example_clip(both, 0.5, is_gradient=True, has_aux=True)(PARAMS, batch(0))
    want = per_example_clip(told, 0.5, has_aux=True)(PARAMS, batch(0))
    np.testing.assert_allclose(flat(got.total), flat(want.total), rtol=1e-6)
    check(got.aux, batch(0))
    assert per_example_clip(loss, 0.5)(PARAMS, batch(0)).aux is None
    with pytest.raises(TypeError, match=r"returned a dict.*must return a pair \(gradient, aux\)"):
        per_example_clip(jax.grad(loss), 0.5, is_gradient=True, has_aux=True)(PARAMS, batch(0))
    with pytest.raises(TypeError):
        per_example_clip(loss, 0.5, has_aux=True)(PARAMS, batch(0))


def test_a_state_goes_through_msgpack_by_name_and_repeats_no_noise() -> None:
    gradient, tx = private_gradient(loss, **NOISY), optax.adam(0.1)
    _, state = gradient(PARAMS, batch(0), gradient.init(7))
    _, held = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
    stored = flax.serialization.to_bytes(optkit.export_state({"private": state, "tx": held}))
    fresh = {"private": gradient.init(0), "tx": tx.init(PARAMS)}
    back = optkit.restore_state(fresh, flax.serialization.msgpack_restore(stored))
    one, after = gradient(PARAMS, batch(1), back["private"])
    two, _ = gradient(PARAMS, batch(1), state)
    np.testing.assert_array_equal(flat(one), flat(two))
    assert int(after.steps) == 2
    np.testing.assert_array_equal(flat(back["tx"]), flat(held))
