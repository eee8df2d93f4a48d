"""Error feedback and EF21: conservation, the virtual iterate, counterexamples of plain signs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.codecs import Codec, IdentityCodec, RandomK, SignCodec, TopK, UniformCodec
from tests.transforms.driver import gradients

COMPRESSORS: list[Codec] = [
    TopK(2),
    RandomK(0.3),
    SignCodec(),
    SignCodec(zero="plus"),
    UniformCodec(bits=3, block=8),
    UniformCodec(bits=4, block=None, norm="norm", rounding="stochastic"),
]
SHAPES = {"w": (3, 5), "b": (4,)}
STEP = jax.jit(lambda tx, g, s, p: tx.update(g, s, p), static_argnums=0)


def rollout(tx: Any, grads: list, params: Any) -> tuple[list, Any]:
    state, out = tx.init(params), []
    for g in grads:
        updates, state = STEP(tx, g, state, params)
        params = optax.apply_updates(params, updates)
        out.append(updates)
    return out, (params, state)


@pytest.mark.parametrize("codec", COMPRESSORS, ids=lambda c: c.name)
@given(seed=st.integers(0, 2**16))
def test_what_was_sent_and_what_waits_is_all_there_was(codec: Codec, seed: int) -> None:
    grads = gradients(seed, 6, SHAPES)
    params = jax.tree.map(np.zeros_like, grads[0])
    sent, (_, state) = rollout(optkit.error_feedback(codec), grads, params)
    for name in SHAPES:
        total = np.sum([np.float64(u[name]) for u in sent], axis=0) + state.error[name]
        np.testing.assert_allclose(total, np.sum([g[name] for g in grads], axis=0), atol=1e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("codec", COMPRESSORS[:3], ids=lambda c: c.name)
@given(seed=st.integers(0, 2**16))
def test_the_virtual_iterate_is_plain_momentum(codec: Codec, seed: int) -> None:
    """With a rate that changes, as the errors have the units of parameters."""
    rate = optax.linear_schedule(0.1, 0.01, 6)
    inner = optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(rate))
    grads = gradients(seed, 6, SHAPES)
    params = jax.tree.map(np.zeros_like, grads[0])
    _, (compressed, state) = rollout(optkit.error_feedback(codec, inner), grads, params)
    _, (plain, _) = rollout(inner, grads, params)
    for name in SHAPES:
        virtual = np.float64(compressed[name]) + state.error[name]
        np.testing.assert_allclose(virtual, plain[name], atol=1e-5)


def test_placement_says_what_is_compressed() -> None:
    g = {"w": jnp.array([1.0, -3.0])}
    for placement, want in (("update", [0.0, 6.0]), ("gradient", [0.0, 6.0])):
        tx = optkit.error_feedback(TopK(1), optax.scale(-2.0), placement=placement)
        updates, state = tx.update(g, tx.init(g))
        assert updates["w"].tolist() == [w if w else 0.0 for w in want]
        waiting = [-2.0, 0.0] if placement == "update" else [1.0, 0.0]
        assert state.error["w"].tolist() == waiting


def test_nothing_waits_if_nothing_is_lost() -> None:
    grads = gradients(0, 3, SHAPES)
    _, (_, state) = rollout(optkit.error_feedback(IdentityCodec()), grads, grads[0])
    assert not any(np.any(e) for e in jax.tree.leaves(state.error))
    assert optkit.error_feedback(TopK(1), memory=False).init(grads[0]).error is None


def test_16_bit_updates_lose_nothing_either() -> None:
    tx = optkit.error_feedback(UniformCodec(bits=8, block=None))
    g = jnp.asarray([1.0, 0.3, -0.7], jnp.bfloat16)
    state, total = tx.init(g), np.zeros(3)
    for _ in range(9):
        updates, state = STEP(tx, g, state, g)
        assert updates.dtype == jnp.bfloat16
        total += np.float64(updates)
    np.testing.assert_allclose(total + state.error, 9 * np.float64(g), rtol=1e-5)


def test_signs_fail_where_feedback_does_not() -> None:
    """The paper's counterexample 1: f(x) = x/4 on [-1, 1] with gradients 4, -1, -1, -1.

    The sign of most gradients points the wrong way; the mean of the updates with feedback does not.
    """
    g = np.random.default_rng(0).permutation(np.tile([4.0, -1.0, -1.0, -1.0], 500))
    grads = [{"x": np.float32([value])} for value in g[:400]]
    ends = {}
    for memory in (False, True):
        tx = optkit.error_feedback(
            SignCodec(scaled=False), optax.scale(-0.01), memory=memory, scale=0.01
        )
        _, (params, _) = rollout(tx, grads, {"x": np.zeros(1, np.float32)})
        ends[memory] = float(params["x"][0])
    assert ends[False] > 0.5  # away from the minimum at -1
    assert ends[True] < -0.5


# ---- EF21


def test_ef21_learns_a_gradient_that_stays() -> None:
    """Each step a coordinate more is right: of d coordinates, all after d/k."""
    g = gradients(1, 1, {"w": (12,)})[0]
    tx = optkit.ef21(TopK(3), start="compressed")
    updates, _ = rollout(tx, [g] * 4, g)
    wrong = [int(np.sum(~np.isclose(u["w"], g["w"], rtol=1e-6))) for u in updates]
    assert wrong == [9, 6, 3, 0]


@given(seed=st.integers(0, 2**16))
def test_ef21_contracts_towards_the_gradient(seed: int) -> None:
    grads = gradients(seed, 5, {"w": (12,)})
    tx, state, codec = optkit.ef21(TopK(4)), None, TopK(4)
    state = tx.init(grads[0])
    for g in grads:
        before = np.sum((g["w"] - np.float64(state.estimate["w"])) ** 2)
        out, state = STEP(tx, g, state, None)
        after = np.sum((g["w"] - np.float64(state.estimate["w"])) ** 2)
        assert after <= (1 - float(codec.contraction(jnp.ones(12)))) * before + 1e-10
        np.testing.assert_array_equal(out["w"], state.estimate["w"])


def test_the_mean_of_workers_follows_from_what_they_send() -> None:
    tx = optkit.ef21(TopK(2))
    grads = [np.stack([g["w"] for g in gradients(t, 3, {"w": (6,)})]) for t in range(4)]
    state = jax.vmap(tx.init)(grads[0])
    mean = None
    for g in grads:
        old = state.estimate
        _, state = jax.vmap(lambda g, s: tx.update(g, s))(g, state)
        sent = np.float64(state.estimate) - np.float64(old)
        mean = sent.mean(0) if mean is None else mean + sent.mean(0)
    np.testing.assert_allclose(mean, np.float64(state.estimate).mean(0), atol=1e-6)


@pytest.mark.parametrize("factory", [optkit.error_feedback, optkit.ef21])
def test_a_compressor_has_to_be_one(factory: Any) -> None:
    with pytest.raises(TypeError, match="the codec comes first, then inner"):
        factory(optax.sgd(0.1))
    with pytest.raises(TypeError, match=r"compressor='top' must be a codec"):
        factory("top")
    with pytest.raises(ValueError, match="placement='before'"):
        optkit.error_feedback(TopK(1), placement="before")


@pytest.mark.parametrize("make", [optkit.error_feedback, optkit.ef21])
def test_compressors_that_lose_without_bound_are_refused(make):
    with pytest.raises(ValueError, match="unbiased=False"):
        make(optkit.codecs.RandomK(0.5, unbiased=True))
    with pytest.raises(ValueError, match=r"for_sign\(True\)"):
        make(optkit.codecs.TableCodec(signed=False))
