"""DP-SGD: what its gradient is, and the ways in which such code goes wrong."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import optkit
from optkit.privacy import private_gradient
from tests.conformance.test_sharding import mesh_of
from tests.privacy.linear import PARAMS, SIZE, batch, clipped, flat, loss

NOISY = {"clip": 0.5, "noise_multiplier": 2.0, "expected_batch": 4.0}


def zero(params: Any, example: Any) -> Any:
    del example
    return jax.tree.map(jnp.zeros_like, params)


def drawn(params: Any, key: int = 0, steps: int = 0, **options: Any) -> Any:
    """The noise of a step alone."""
    gradient = private_gradient(zero, is_gradient=True, **{**NOISY, **options})
    state = gradient.init(key)._replace(steps=jnp.int32(steps))
    return gradient(params, jnp.zeros((1, 1)), state)[0]


def test_without_noise_and_clipping_it_is_the_mean_gradient() -> None:
    gradient = private_gradient(loss, clip=np.inf, noise_multiplier=0.0, expected_batch=SIZE)
    got, _ = gradient(PARAMS, batch(0), gradient.init(0))
    whole = lambda p: jnp.mean(jax.vmap(loss, (None, 0))(p, batch(0)))  # noqa: E731
    np.testing.assert_allclose(flat(got), flat(jax.grad(whole)(PARAMS)), rtol=1e-5, atol=1e-6)


def test_noise_has_its_size_and_is_new_in_each_step_and_run() -> None:
    params = {"w": jnp.zeros(100_000)}
    first, second = (np.asarray(drawn(params, steps=t)["w"], np.float64) for t in (0, 1))
    other = np.asarray(drawn(params, key=1)["w"], np.float64)
    std = 0.5 * 2.0 / 4.0
    error = 4.0 / np.sqrt(1e5)  # four standard errors
    for sample in (first, second, other):
        assert np.std(sample) == pytest.approx(std, rel=error / np.sqrt(2))
        assert abs(np.mean(sample)) < std * error
        assert np.mean((sample / std) ** 4) == pytest.approx(3.0, abs=error * np.sqrt(96))
    assert abs(np.corrcoef(first, second)[0, 1]) < error
    assert abs(np.corrcoef(first, other)[0, 1]) < error


def test_the_state_goes_on_with_new_noise_and_repeats_from_a_checkpoint() -> None:
    gradient = jax.jit(private_gradient(loss, **NOISY).__call__)
    state = private_gradient(loss, **NOISY).init(3)
    one, after = gradient(PARAMS, batch(0), state)
    two, _ = gradient(PARAMS, batch(0), after)
    again, _ = gradient(PARAMS, batch(0), state)
    np.testing.assert_array_equal(flat(one), flat(again))
    assert np.all(flat(one) != flat(two))
    assert int(after.steps) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_trap_a_bad_example_neither_passes_unclipped_nor_spoils_the_sum(bad: float) -> None:
    x, y = batch(1)
    want = clipped((x, y), 0.5, np.arange(SIZE) != 2) / 4.0
    x[2, 0] = bad
    gradient = private_gradient(loss, **NOISY | {"noise_multiplier": 0.0})
    np.testing.assert_allclose(flat(gradient(PARAMS, (x, y), gradient.init(0))[0]), want, rtol=1e-5)
    # What it is a departure from.
    theirs = optax.contrib.differentially_private_aggregate(0.5, 0.0, key=0)
    grads = jax.vmap(jax.grad(loss), (None, 0))(PARAMS, (x, y))
    assert not np.isfinite(flat(theirs.update(grads, theirs.init(PARAMS))[0])).all()


def test_trap_b_the_divisor_does_not_tell_how_many_were_drawn() -> None:
    gradient = private_gradient(loss, **NOISY | {"noise_multiplier": 0.0})
    for mask in (np.arange(SIZE) < 3, np.ones(SIZE, bool), np.zeros(SIZE, bool)):
        got, _ = gradient(PARAMS, batch(2), gradient.init(0), mask=mask)
        np.testing.assert_allclose(flat(got), clipped(batch(2), 0.5, mask) / 4.0, rtol=1e-5)
    noisy = private_gradient(loss, **NOISY)
    nobody, _ = noisy(PARAMS, batch(2), noisy.init(0), mask=np.zeros(SIZE, bool))
    np.testing.assert_array_equal(flat(nobody), flat(drawn(PARAMS)))


def test_trap_c_noise_of_a_leaf_does_not_depend_on_other_leaves() -> None:
    alone = drawn({"w": PARAMS["w"]})["w"]
    np.testing.assert_array_equal(alone, drawn(PARAMS)["w"])
    np.testing.assert_array_equal(alone, drawn(PARAMS | {"a": jnp.zeros(2)})["w"])
    twins = drawn({"one": jnp.zeros(3), "two": jnp.zeros(3)})
    assert np.all(np.asarray(twins["one"]) != np.asarray(twins["two"]))


def test_trap_d_microbatches_add_noise_once() -> None:
    out = []
    for microbatch in (None, 2, 3):
        gradient = private_gradient(loss, microbatch=microbatch, **NOISY)
        out.append(flat(gradient(PARAMS, batch(3), gradient.init(0))[0]))
    want = clipped(batch(3), 0.5) / 4.0 + flat(drawn(PARAMS))
    for got in out:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_trap_e_devices_add_noise_once() -> None:
    gradient = private_gradient(loss, axis_name="x", **NOISY)
    state = gradient.init(0)
    mapped = jax.shard_map(
        gradient, mesh=mesh_of("auto"), in_specs=(P(), P("x"), P()), out_specs=(P(), P())
    )
    got, _ = jax.jit(mapped)(PARAMS, batch(4), state)
    want = clipped(batch(4), 0.5) / 4.0 + flat(drawn(PARAMS))
    np.testing.assert_allclose(flat(got), want, rtol=1e-5, atol=1e-6)


def test_a_scheduled_length_takes_the_noise_along() -> None:
    falling = lambda steps: 0.5 / (1.0 + steps)  # noqa: E731
    got = flat(drawn(PARAMS, steps=3, clip=falling))
    np.testing.assert_allclose(got, flat(drawn(PARAMS, steps=3)) / 4.0, rtol=1e-6)


def test_gradients_have_the_dtypes_of_parameters_and_train() -> None:
    half = {name: p.astype(jnp.bfloat16) for name, p in PARAMS.items()}
    gradient = private_gradient(loss, **NOISY)
    grads, _ = gradient(half, batch(5), gradient.init(0))
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("bfloat16")}
    tx = optkit.lion(0.1)
    updates, _ = tx.update(grads, tx.init(half), half)
    assert np.all(flat(optax.apply_updates(half, updates)) != flat(half))


def test_recorded_noise_is_taken_and_checked() -> None:
    gradient = private_gradient(zero, is_gradient=True, **NOISY)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    got, _ = gradient(PARAMS, jnp.zeros((1, 1)), gradient.init(0), noise=ones)
    np.testing.assert_allclose(flat(got), 0.25)
    with pytest.raises(ValueError, match="noise"):
        gradient(PARAMS, jnp.zeros((1, 1)), gradient.init(0), noise={"b": ones["b"]})


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="expected_batch=0"):
        private_gradient(loss, **NOISY | {"expected_batch": 0})
    with pytest.raises(ValueError, match=r"clip=inf with noise_multiplier=1\.0"):
        private_gradient(loss, clip=np.inf, noise_multiplier=1.0, expected_batch=4)
    with pytest.raises(ValueError, match=r"noise_multiplier=-1\.0"):
        private_gradient(loss, **NOISY | {"noise_multiplier": -1.0})
    with pytest.raises(ValueError, match="key='secret'"):
        private_gradient(loss, **NOISY).init("secret")
    with pytest.raises(ValueError, match="microbatch=0"):
        private_gradient(loss, **NOISY, microbatch=0)
    with pytest.raises(TypeError, match="clip may be a schedule"):
        private_gradient(loss, **NOISY | {"noise_multiplier": lambda count: 1.0})
    with pytest.raises(
        TypeError, match=r"must be what init returned, a PrivateState.*\(params, batch, state\)"
    ):
        private_gradient(loss, **NOISY)(PARAMS, jnp.zeros((1, 1)), jax.random.key(0))
