"""Laws of weights on a codec's grid."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.codecs import AffineCodec, IdentityCodec
from optkit.transforms.grid import QuantizeParamsState
from tests.transforms.driver import gradients

SHAPES = {"w": (6, 10), "stack": (2, 3, 4), "bias": (3,)}
GRID = AffineCodec(bits=4, group=8, layout="flat")
seeds = st.integers(0, 2**32 - 1)
SGD = optax.sgd(0.1)


def _halves(path, shape, step):
    del path, step
    return jnp.full(-(-int(np.prod(shape)) // 8) * 8, 0.5)


TX = {
    store: optkit.quantize_params(SGD, GRID, store=store, uniforms=_halves)
    for store in (False, True)
}
STEPS = {store: jax.jit(tx.update) for store, tx in TX.items()}
RANDOM = optkit.quantize_params(SGD, GRID)
AT_RANDOM = jax.jit(RANDOM.update)


@given(seed=seeds)
def test_steps_land_on_the_grid_of_the_stepped_weights(seed):
    p, g = gradients(seed, 2, SHAPES)
    u, _ = STEPS[False](g, TX[False].init(p), p)
    for name in ("w", "stack"):
        want = GRID.round_trip(p[name] - 0.1 * g[name])
        np.testing.assert_allclose(p[name] + u[name], want, atol=1e-6)
    np.testing.assert_array_equal(u["bias"], np.float32(-0.1) * g["bias"])


@given(seed=seeds)
def test_errors_are_below_a_step_and_vanish_on_average(seed):
    """All of 400 draws lie within one step, and their mean within some deviations of it."""
    p, g = gradients(seed, 2, {"w": (2, 8)})
    want = np.float64(p["w"]) - 0.1 * g["w"]
    keys = jax.random.split(jax.random.key(seed), 400)

    def landed(key):
        state = RANDOM.init(p)._replace(key=key)
        return p["w"] + RANDOM.update(g, state, p)[0]["w"]

    off = np.float64(jax.jit(jax.vmap(landed))(keys)) - want
    low, high = (np.minimum(want.min(1), 0.0), np.maximum(want.max(1), 0.0))
    scale = ((high - low) / 15)[:, None]
    # The zero point is rounded, too: what lies beyond the grid's ends is cut off there.
    zero = np.clip(-np.round(low[:, None] / scale), 0, 15)
    inside = (want / scale > -zero) & (want / scale < 15 - zero)
    assert np.all(np.abs(off) < scale * 1.001)
    assert np.all(np.abs(off.mean(0)) < (3.5 * 0.5 * scale / 20), where=inside)


@given(seed=seeds)
def test_stored_weights_are_those_that_codes_say(seed):
    first, *grads = gradients(seed, 4, SHAPES)
    state, p = TX[True].init(first), first
    assert isinstance(state, QuantizeParamsState)
    held = GRID.round_trip(first["w"])
    np.testing.assert_allclose(optkit.stored_params(state, p, GRID)["w"], held, atol=1e-6)
    for g in grads:
        u, state = STEPS[True](g, state, p)
        # From what is stored, and not from what the parameters have become.
        held = GRID.round_trip(held - np.float32(0.1) * g["w"], None)
        p = optax.apply_updates(p, u)
        exact = optkit.stored_params(state, p, GRID)
        np.testing.assert_allclose(exact["w"], held, atol=2e-6)
        np.testing.assert_allclose(p["w"], exact["w"], atol=1e-6)
        np.testing.assert_array_equal(exact["bias"], p["bias"])


def test_parameters_need_not_be_kept_between_steps():
    """Read off the codes at every step, in bfloat16 even, they train as well as when kept."""
    first, *grads = gradients(3, 4, SHAPES)
    tx = TX[True]
    kept = first
    state, alone = tx.init(first), tx.init(first)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for k, v in first.items()}
    shapes["bias"] = first["bias"]
    for g in grads:
        u, state = STEPS[True](g, state, kept)
        kept = optax.apply_updates(kept, u)
        read = optkit.stored_params(alone, shapes, GRID)
        assert read["w"].dtype == jnp.bfloat16
        u, alone = STEPS[True](g, alone, read)
        assert u["w"].dtype == jnp.float32
        after = optax.apply_updates(read, u)
        np.testing.assert_array_equal(after["w"], optkit.stored_params(alone, shapes, GRID)["w"])
    jax.tree.map(np.testing.assert_array_equal, state.codes, alone.codes)


def test_small_steps_are_not_lost_at_random_and_are_when_rounded_to_the_nearest():
    codec = AffineCodec(bits=8, group=64)
    p = {"w": jnp.linspace(-1.0, 1.0, 64).reshape(1, 64)}
    g = {"w": jnp.zeros((1, 64)).at[0, 1:-1].set(1.0)}  # far below a step of 2/255
    moved = {}
    for rounding in ("nearest", "stochastic"):
        tx = optkit.quantize_params(optax.sgd(1e-4), codec, rounding=rounding)
        held, state, step = p, tx.init(p), jax.jit(tx.update)
        for _ in range(100):
            u, state = step(g, state, held)
            held = optax.apply_updates(held, u)
        moved[rounding] = float(jnp.mean((held["w"] - p["w"])[0, 2:-2]))
    assert abs(moved["nearest"]) < 2e-3
    np.testing.assert_allclose(moved["stochastic"], -0.01, atol=2.5e-3)


def test_state_bytes_of_codes_are_one_and_a_thirty_second():
    params = {"w": jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16)}
    state = jax.eval_shape(optkit.quantize_params(SGD, store=True).init, params)
    assert optkit.tree.tree_bytes(state.codes) == 512 * 1024 * (1 + 8 / 256)


def test_a_grid_of_all_numbers_changes_nothing():
    p, g = gradients(0, 2, SHAPES)
    tx = optkit.quantize_params(SGD, IdentityCodec())
    u, _ = jax.jit(tx.update)(g, tx.init(p), p)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -0.1 * b, atol=1e-6), u, g)


def test_wrong_use_is_refused():
    p = {"w": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="rounding='up'"):
        optkit.quantize_params(SGD, rounding="up")
    with pytest.raises(TypeError, match="must be a codec"):
        optkit.quantize_params(SGD, "int8")
    with pytest.raises(ValueError, match="names no leaf"):
        optkit.quantize_params(SGD, leaves="kernel").init(p)
    with pytest.raises(ValueError, match="adds no updates"):
        optkit.quantize_params(SGD).init({"w": jnp.ones((2, 2), jnp.float8_e4m3fn)})
    with pytest.raises(ValueError, match="store=True"):
        optkit.stored_params(RANDOM.init(p), p)
    with pytest.raises(ValueError, match="affine4_8_flat"):
        optkit.stored_params(TX[True].init(p), p)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"w": jnp.zeros((4, 3))}, "leaf 'w' of shape .4, 3. would be stored as .*init was given"),
        ({"w": jnp.zeros((2, 2))}, "leaf 'w' of shape .2, 2."),
        ({"params": {"w": jnp.zeros((3, 4))}}, "another tree than these parameters"),
    ],
)
def test_stored_weights_are_read_as_what_they_were(params, text):
    state = optkit.quantize_params(optax.sgd(0.1), store=True).init({"w": jnp.zeros((3, 4))})
    with pytest.raises(ValueError, match=text):
        optkit.stored_params(state, params)
