"""ECO: the published injections, the exact variant as master weights, grids, what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.codecs import Bf16Codec, Fp8Codec, IdentityCodec, TableCodec, UniformCodec
from tests.transforms.driver import gradients

STEP = jax.jit(lambda tx, g, s, p: tx.update(g, s, p), static_argnums=0)
GRID = Fp8Codec(block=None)
SHAPES = {"w": (4, 6), "b": (3,)}


def rollout(tx: Any, grads: list, params: Any) -> list[tuple]:
    """(parameters, state) after each step."""
    state, out = tx.init(params), []
    for g in grads:
        updates, state = STEP(tx, g, state, params)
        params = jax.tree.map(lambda p, u: p + u, params, updates)
        out.append((params, state))
    return out


@given(seed=st.integers(0, 2**16), heavy=st.booleans())
def test_sgd_with_momentum_is_algorithm_2(seed: int, heavy: bool) -> None:
    lr, b = 0.1, 0.9
    fresh = 1.0 if heavy else 1.0 - b
    direction = optax.trace(b) if heavy else optkit.momentum(b)
    tx = optkit.eco(optax.chain(direction, optax.scale(-lr)), GRID, rounding="nearest")
    grads = gradients(seed, 4, SHAPES)
    p = grads[0]
    w, m = np.float64(p["w"]), np.zeros((4, 6))
    for g, (params, state) in zip(grads, rollout(tx, grads, p), strict=True):
        m = b * m + fresh * g["w"]
        target = w - lr * m
        w = np.float64(GRID.round_trip(jnp.asarray(target, jnp.float32)))
        m = m + (1 / lr) * (1 - 1 / b) * (target - w)
        if not np.allclose(params["w"], w, rtol=1e-6):
            return  # a rounding on a boundary went the other way
        held = state.inner[0].trace if heavy else state.inner[0].momentum
        np.testing.assert_allclose(held["w"], m, atol=2e-4)


@given(seed=st.integers(0, 2**16))
def test_with_the_last_error_it_is_training_with_master_weights(seed: int) -> None:
    """The gradient is taken at the rounded weights in both."""
    lr, b, rng = 0.05, 0.9, np.random.default_rng(seed)
    curvature = np.float32(rng.uniform(0.2, 1.0, (4, 6)))
    grid = TableCodec("linear", block=32)
    inner = optax.chain(optkit.momentum(b), optax.scale(-lr))
    tx = optkit.eco(inner, grid, rounding="nearest", exact=True)
    start = grid.round_trip(jnp.asarray(rng.standard_normal((4, 6)), jnp.float32))
    params, state = {"w": start}, tx.init({"w": start})
    master, m = np.float64(start), np.zeros((4, 6))
    for _ in range(8):
        g = curvature * params["w"]
        updates, state = STEP(tx, {"w": g}, state, params)
        params = {"w": params["w"] + updates["w"]}
        m = b * m + (1 - b) * np.float64(g)
        master = master - lr * m
        whole = np.float64(params["w"]) + np.float64(state.error["w"])
        np.testing.assert_allclose(whole, master, atol=5e-5)


@pytest.mark.parametrize(
    "inner",
    [optkit.adamw(0.01), optax.adamw(0.01), optax.sgd(0.1, momentum=0.9)],
    ids=["optkit.adamw", "optax.adamw", "sgd"],
)
def test_on_a_grid_of_all_numbers_it_is_the_inner_optimizer(inner: Any) -> None:
    grads = gradients(0, 3, SHAPES)
    got = rollout(optkit.eco(inner, IdentityCodec()), grads, grads[0])[-1][0]
    want = rollout(inner, grads, grads[0])[-1][0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_weights_stay_on_the_grid_and_vectors_off_it() -> None:
    tx = optkit.eco(optkit.adamw(0.01), GRID, key=3)
    grads = gradients(1, 3, SHAPES)
    for params, _ in rollout(tx, grads, grads[0]):
        nearest = GRID.round_trip(params["w"])
        np.testing.assert_allclose(params["w"], nearest, rtol=3e-7)
        assert np.any(GRID.round_trip(params["b"]) != params["b"])
    everywhere = optkit.eco(optkit.adamw(0.01), GRID, leaves="**")
    params, _ = rollout(everywhere, grads, grads[0])[-1]
    np.testing.assert_allclose(params["b"], GRID.round_trip(params["b"]), rtol=3e-7)


def test_a_learning_rate_of_zero_injects_nothing() -> None:
    tx = optkit.eco(optax.sgd(0.0, momentum=0.9), GRID, rounding="nearest")
    grads = gradients(0, 2, SHAPES)
    state = rollout(tx, grads, grads[0])[-1][1]
    np.testing.assert_allclose(
        state.inner[0].trace["w"], 0.9 * grads[0]["w"] + grads[1]["w"], rtol=1e-6
    )


def test_where_naive_rounding_stalls_it_does_not() -> None:
    """Steps below half a grid step: to the nearest the weights never move, with ECO they do."""
    lr, curvature = 0.003, np.float32(np.linspace(0.2, 1.0, 32).reshape(4, 8))
    grid = UniformCodec(bits=8, block=None)
    inner = optax.chain(optkit.momentum(0.9), optax.scale(-lr))
    start = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8)), jnp.float32)
    start = grid.round_trip(start)

    def train(tx: Any) -> float:
        def body(carry: tuple, _: None) -> tuple:
            p, s = carry
            u, s = tx.update({"w": curvature * (p["w"] - 0.3)}, s, p)
            p = {"w": p["w"] + u["w"]}
            return (p, s), jnp.sum(curvature * (p["w"] - 0.3) ** 2)

        run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=3000)[1])
        return float(run({"w": start})[-100:].mean())

    def naive_update(updates: Any, state: Any, params: Any) -> tuple:
        u, state = inner.update(updates, state, params)
        return {"w": grid.round_trip(params["w"] + u["w"]) - params["w"]}, state

    naive = train(optax.GradientTransformation(inner.init, naive_update))
    assert train(optkit.eco(inner, grid, rounding="nearest")) < 0.05 * naive


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: optkit.eco(optax.sgd(0.1), "fp8"), TypeError, "codec='fp8' must be a codec"),
        (lambda: optkit.eco(optax.sgd(0.1), rounding="up"), ValueError, "rounding='up'"),
        (lambda: optkit.eco(optax.sgd(0.1)).init({"w": jnp.ones((2, 2))}), ValueError,
         "leaf 'w' has no momentum"),
        (lambda: optkit.eco(optax.chain(optax.trace(0.9), optax.trace(0.9))).init(
            {"w": jnp.ones((2, 2))}), ValueError, "leaf 'w' has two momenta"),
    ],
)  # fmt: skip
def test_wrong_use_is_answered(make: Any, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        make()
    assert optkit.eco(optax.sgd(0.1, momentum=0.9), Bf16Codec())


def test_leaves_of_8_bits_are_refused_by_name():
    params = {"w": jnp.ones((2, 2), jnp.float8_e4m3fn)}
    with pytest.raises(ValueError, match=r"leaf 'w' is float8_e4m3fn.*round_trip"):
        optkit.eco_adamw(1e-3).init(params)
