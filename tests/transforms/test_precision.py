"""16-bit training: stochastic rounding, master weights, float32 chains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import optkit
from optkit.transforms import round_stochastically
from tests.transforms.driver import gradients, run

DTYPES = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]
COPIES = 4096
ROUND = jax.jit(
    lambda x, key, dtype: round_stochastically(jnp.full(COPIES, x), dtype, key), static_argnums=2
)


@pytest.mark.parametrize("dtype", DTYPES)
@given(value=st.floats(-200, 200, width=32, allow_subnormal=False), seed=st.integers(0, 99))
def test_rounding_is_unbiased_and_lands_on_a_neighbour(dtype, value, seed):
    x = np.float32(value)
    values = _all_values(dtype)
    low, high = values[values <= x].max(), values[values >= x].min()
    out = np.float64(ROUND(x, jax.random.key(seed), dtype).astype(jnp.float32))
    if 0 < high - low < 1e-37:
        return  # the processor takes such differences for 0
    assert set(out) <= {low, high}
    if low < high:
        share = (np.float64(x) - low) / (high - low)
        error = np.sqrt(max(share * (1 - share), 1e-4) / COPIES)
        assert abs((out.mean() - low) / (high - low) - share) < 6 * error


def _all_values(dtype):
    """All finite values, in order, without the subnormal ones of float32."""
    bits = jnp.finfo(dtype).bits
    codes = np.arange(2**bits, dtype=np.uint8 if bits == 8 else np.uint16)
    with np.errstate(invalid="ignore"):
        values = codes.view(dtype).astype(np.float64)
    values = values[np.isfinite(values)]
    return np.unique(values[(np.abs(values) >= 1.2e-38) | (values == 0)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_has_no_neighbours_rounds_as_a_cast(dtype):
    top = float(jnp.finfo(dtype).max)
    beyond = 3.4e38  # float32 still holds it, none of the others does
    x = [0.0, -0.0, 1.0, -1.5, top, -top, np.nan, np.inf, -np.inf, beyond, -beyond]
    x = jnp.asarray(np.float32(x))
    out = round_stochastically(x, dtype, jax.random.key(0))
    np.testing.assert_array_equal(np.float32(out), np.float32(x.astype(dtype)))


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_chain_with_stochastic_rounding_trains_in_the_mean(dtype):
    params = {"w": jnp.full(2048, 1.0, dtype), "f": jnp.ones(2)}
    grads = {"w": jnp.ones(2048, dtype), "f": jnp.ones(2)}
    tx = optax.chain(optkit.descend(optax.identity(), 1e-2), optkit.stochastic_round(1))
    u, moved, _ = run(tx, params, [grads] * 20)
    assert moved["w"].dtype == dtype and u["f"].dtype == jnp.float32
    size = float(jnp.finfo(dtype).eps)
    bound = 6 * np.sqrt(20 * 0.01 * size / 2048) + 0.01 * 20 * 0.01
    assert abs(float(moved["w"][-1].astype(jnp.float32).mean()) - 0.8) < bound
    np.testing.assert_allclose(moved["f"][-1], 0.8, rtol=1e-5)
    plain = run(optkit.descend(optax.identity(), 1e-3), params, [grads] * 2)[1]["w"]
    if dtype != jnp.float16:
        assert float(plain[-1][0]) == 1.0, "the example would train without rounding, too"


def test_noise_differs_between_steps_leaves_and_seeds_and_repeats():
    params = {"a": jnp.ones(64, jnp.bfloat16), "b": jnp.ones(64, jnp.bfloat16)}
    grads = jax.tree.map(lambda p: jnp.full(64, 2.0**-9, jnp.bfloat16), params)

    def updates(seed):
        tx = optkit.stochastic_round(seed)
        return run(optax.chain(optax.scale(-1.0), tx), params, [grads] * 2)[0]

    first, again, other = updates(0), updates(0), updates(jax.random.key(1))
    np.testing.assert_array_equal(first["a"], again["a"])
    for x, y in (
        (first["a"], other["a"]),
        (first["a"], first["b"]),
        (first["a"][0], first["a"][1]),
    ):
        assert np.any(np.asarray(x) != np.asarray(y))


def test_sharding_does_not_change_the_noise():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("x",))
    split = NamedSharding(mesh, PartitionSpec("x"))
    params, grads = jnp.ones((8, 16), jnp.bfloat16), jnp.full((8, 16), -(2.0**-9), jnp.bfloat16)
    tx = optkit.stochastic_round(5)
    step = jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[0])
    alone = step(params, grads)
    together = step(jax.device_put(params, split), jax.device_put(grads, split))
    np.testing.assert_array_equal(alone, together)
    assert 0 < np.count_nonzero(alone) < alone.size


@pytest.mark.parametrize("wrapper", [optkit.master_weights, lambda tx: tx], ids=["master", "bare"])
def test_a_bfloat16_one_moves_with_master_weights_only(wrapper):
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    _, moved, _ = run(wrapper(optax.sgd(1e-3)), params, [params] * 200)
    expected = 0.8 if wrapper is optkit.master_weights else 1.0
    assert float(moved["w"][-1][0]) == pytest.approx(expected, abs=2e-3)


@pytest.mark.sweep
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn])
@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_master_weights_are_float32_training_rounded(name, dtype):
    grads = gradients(3, 8, {"kernel": (3, 4), "bias": (4,)})
    start = jax.tree.map(lambda x: jnp.asarray(x, dtype), grads[0])
    grads = [jax.tree.map(lambda x: jnp.asarray(x, dtype), g) for g in grads]
    inner = optkit.catalogue.get(name).factory(0.01, weight_decay=0.1)
    _, moved, state = run(optkit.master_weights(inner), start, grads)
    up = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)  # noqa: E731
    _, exact, _ = run(inner, up(start), [up(g) for g in grads])
    for key in start:
        np.testing.assert_allclose(state.master[key], exact[key][-1], rtol=1e-5, atol=1e-6)
        assert moved[key].dtype == dtype
        np.testing.assert_array_equal(
            np.float32(moved[key][-1]), np.float32(state.master[key].astype(dtype))
        )


def test_float32_leaves_need_no_copy():
    params = {"w": jnp.ones(2, jnp.bfloat16), "f": jnp.ones(3)}
    state = optkit.master_weights(optax.sgd(0.1)).init(params)
    assert optkit.tree.tree_bytes(state) == 8
    tx = optkit.master_weights(optax.sgd(0.5))
    u, _ = tx.update(params, tx.init(params), params)
    assert u["f"].tolist() == [-0.5] * 3
    for wrapped in (tx, optkit.stochastic_round(0)):
        with pytest.raises(ValueError, match="needs the parameters"):
            wrapped.update(params, wrapped.init(params))


def test_in_float32_rounds_once_and_leaves_float32_alone():
    links = [optax.scale(1 / 3), optax.add_decayed_weights(1e-3), optax.scale(3.0)]
    x = jnp.linspace(0.1, 1.0, 7)
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        low = x.astype(dtype)
        tx = optkit.in_float32(optax.chain(*links))
        out, _ = tx.update(low, tx.init(low), low.astype(jnp.float32))
        exact = 3 * (low.astype(jnp.float32) / 3 + 1e-3 * low.astype(jnp.float32))
        assert out.dtype == dtype
        np.testing.assert_allclose(
            np.float32(out),
            np.float32(exact.astype(dtype)),
            rtol=float(jnp.finfo(dtype).eps) / 4 + 1e-7,
        )


@pytest.mark.parametrize("wrap", [lambda tx: optkit.accumulate_gradients(tx, 2), optkit.in_float32])
def test_wrappers_do_not_round_the_float32_updates_of_master_weights(wrap):
    tx = wrap(optkit.master_weights(optax.sgd(1e-2)))
    params = {"w": jnp.linspace(0.5, 3.0, 64, dtype=jnp.bfloat16)}
    grads = {"w": jnp.sin(jnp.arange(64.0)).astype(jnp.bfloat16)}
    state = tx.init(params)
    step = jax.jit(tx.update)
    for _ in range(6):
        updates, state = step(grads, state, params)
        params = optax.apply_updates(params, updates)
    master = optax.tree.get(state, "master")["w"]
    assert updates["w"].dtype == jnp.float32
    np.testing.assert_array_equal(params["w"], master.astype(jnp.bfloat16))


def test_equal_calls_are_one_optimizer_however_they_are_spelled():
    assert optkit.lion(1e-3) is optkit.lion(learning_rate=1e-3, b1=0.9)
    assert optkit.lion(1e-3) is not optkit.lion(2e-3)
