"""Moments of rows and entries: definitions in NumPy, sizes, range, placement of the state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit import linalg
from tests.transforms.driver import directions, gradients

SHAPES = {"wide": (3, 7), "tall": (7, 3), "square": (4, 4), "stack": (2, 3, 5), "row": (1, 6)}
GRADS = gradients(0, 5, SHAPES)
SIDES = {
    "out": lambda a, b: 1,
    "in": lambda a, b: 0,
    "long": lambda a, b: 1 if a >= b else 0,
    "short": lambda a, b: 0 if a >= b else 1,
}


def resized(x, u, rescale, rms, eps=0.0):
    if rescale == "none":
        return x
    size = np.linalg.norm(u) if rescale == "frobenius" else rms * np.sqrt(x.size)
    return x * size / (np.linalg.norm(x) + eps)


def rows_oracle(grads, b2, eps, axis, rescale, rms):
    """One matrix (fan_out, fan_in), float64."""
    a, b = grads[0].shape
    over = SIDES[axis](a, b)
    v, out = np.zeros((a, b)).mean(over, keepdims=True), []
    for u in grads:
        v = b2 * v + (1 - b2) * np.mean(u**2, axis=over, keepdims=True)
        out.append(resized(u / (np.sqrt(v) + eps), u, rescale, rms))
    return np.stack(out)


def entries_oracle(grads, b2, eps, axis, rescale, rms):
    v, out = np.zeros_like(grads[0]), []
    for u in grads:
        v = b2 * v + (1 - b2) * u**2
        out.append(resized(u / (np.sqrt(v) + eps), u, rescale, rms, eps))
    return np.stack(out)


def check_against(oracle, tx, *options):
    got = directions(tx, GRADS)
    for name in SHAPES:
        given_ = np.stack([np.float64(g[name]) for g in GRADS])
        # Kernels are (fan_in, fan_out).
        turned = np.swapaxes(given_, -1, -2)
        flat = turned.reshape(len(GRADS), -1, *turned.shape[-2:])
        want = np.stack([oracle(flat[:, i], *options) for i in range(flat.shape[1])], axis=1)
        mine = np.swapaxes(np.asarray(got[name]), -1, -2).reshape(want.shape)
        np.testing.assert_allclose(mine, want, rtol=2e-5, atol=1e-6, err_msg=name)


@pytest.mark.sweep
@pytest.mark.parametrize("rescale", ["frobenius", "match_rms", "none"])
@pytest.mark.parametrize("axis", SIDES)
def test_row_moment_is_its_definition(axis, rescale):
    tx = optkit.scale_by_row_moment(0.8, axis=axis, eps=0.1, rescale=rescale, update_rms=0.3)
    check_against(rows_oracle, tx, 0.8, 0.1, axis, rescale, 0.3)


@pytest.mark.parametrize("rescale", ["frobenius", "match_rms", "none"])
def test_entry_moment_is_its_definition(rescale):
    tx = optkit.scale_by_entry_moment(0.8, eps=0.1, rescale=rescale, update_rms=0.3)
    check_against(entries_oracle, tx, 0.8, 0.1, "", rescale, 0.3)


@pytest.mark.sweep
@pytest.mark.parametrize("axis", SIDES)
def test_a_factor_in_the_part_is_a_link_in_front(axis):
    function = lambda x: linalg.newton_schulz(3.0 * x)  # noqa: E731
    one = optkit.scale_by_row_moment(0.8, axis=axis, factor=function)
    two = optax.chain(optkit.orthogonalize(function), optkit.scale_by_row_moment(0.8, axis=axis))
    for name, got in directions(one, GRADS).items():
        np.testing.assert_allclose(got, directions(two, GRADS)[name], rtol=2e-5, atol=1e-6)


def test_dims_say_what_a_row_is():
    grads = [{"w": g["wide"]} for g in GRADS]
    turned = [{"w": g["w"].T} for g in grads]
    tx = optkit.scale_by_row_moment(dims=MuonDimensionNumbers(1, 0))
    got = directions(tx, turned)["w"]
    np.testing.assert_allclose(
        np.swapaxes(got, 1, 2), directions(optkit.scale_by_row_moment(), grads)["w"], rtol=1e-6
    )
    assert tx.init(turned[0]).moment["w"].shape == (7,)


def test_blocks_of_a_fused_leaf_are_leaves():
    dims = optkit.MatrixDims(output_blocks=(4, 2, 2))
    grads = gradients(2, 3, {"qkv": (3, 8)})
    apart = [{"q": g["qkv"][:, :4], "k": g["qkv"][:, 4:6], "v": g["qkv"][:, 6:]} for g in grads]
    for build in (optkit.scale_by_row_moment, optkit.scale_by_entry_moment):
        fused = directions(build(dims=dims), grads)["qkv"]
        single = directions(build(), apart)
        want = np.concatenate([single[name] for name in "qkv"], axis=-1)
        np.testing.assert_allclose(fused, want, rtol=1e-5, atol=1e-7)


@given(
    st.integers(0, 10**6),
    st.sampled_from(["frobenius", "match_rms"]),
    st.floats(0.0, 0.999),
    st.integers(1, 6),
)
def test_the_size_is_restored_and_the_first_rows_are_equal(seed, rescale, b2, zero_rows):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((8, 5)) * 10 ** rng.uniform(-3, 3, (1, 5)) * 10 ** rng.uniform(-2, 2)
    u = np.float32(x / np.abs(x).max())
    u[:zero_rows] = 0.0  # inputs that no neuron uses
    tx = optkit.scale_by_row_moment(b2, rescale=rescale, eps=0.0)
    out = np.float64(tx.update({"w": jnp.asarray(u)}, tx.init({"w": u}))[0]["w"])
    size = np.linalg.norm(u) if rescale == "frobenius" else 0.2 * np.sqrt(u.size)
    np.testing.assert_allclose(np.linalg.norm(out), size, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(out, axis=0), size / np.sqrt(5), rtol=1e-5)
    assert np.all((out != 0) == (u != 0))


def test_a_slow_moment_keeps_relative_row_norms_after_burn_in():
    """b2 near 1: every row is divided by its own long-run size, so its changes remain."""
    rng = np.random.default_rng(0)
    sizes = np.float32(10 ** rng.uniform(-1, 1, (1, 4)))
    shape = np.float32(np.sign(rng.standard_normal((6, 4)))) * sizes
    grads = [{"w": shape}] * 400 + [{"w": shape * np.float32([[1.0, 2.0, 0.5, 1.0]])}]
    tx = optkit.scale_by_row_moment(0.99, rescale="none")
    last = np.linalg.norm(np.asarray(directions(tx, grads)["w"])[-1], axis=0)
    np.testing.assert_allclose(last / last[0], [1.0, 2.0, 0.5, 1.0], rtol=0.02)


@pytest.mark.parametrize("build", [optkit.scale_by_row_moment, optkit.scale_by_entry_moment])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_no_scale_of_updates_poisons_the_state(build, scale):
    tx = build()
    state = tx.init({"w": jnp.ones((3, 4))})
    for size in (scale, scale, 1.0):
        u, state = tx.update({"w": size * jnp.asarray(GRADS[0]["wide"][:, :4])}, state)
        assert np.isfinite(np.asarray(u["w"])).all()
        assert np.isfinite(np.asarray(state.moment["w"])).all()
    if scale < 1:
        assert np.any(np.asarray(u["w"]))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [P("x", None), P(None, "x"), P("x", "y")])
def test_norms_are_those_of_whole_matrices_on_a_mesh(kind, spec):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    u = np.float32(np.random.default_rng(1).standard_normal((8, 8)) * 10.0 ** np.arange(-4, 4))
    whole = functools.partial(optkit.scale_by_row_moment, factor=lambda x: x)
    for build in (optkit.scale_by_row_moment, whole, optkit.scale_by_entry_moment):
        tx = build()
        placed = {"w": jax.device_put(u, NamedSharding(mesh, spec))}
        with jax.set_mesh(mesh):
            got = jax.jit(tx.update)(placed, tx.init(placed))[0]["w"]
        want = tx.update({"w": jnp.asarray(u)}, tx.init({"w": u}))[0]["w"]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"axis='rows' is not one of 'out'"):
        optkit.scale_by_row_moment(axis="rows")
    for build in (optkit.scale_by_row_moment, optkit.scale_by_entry_moment):
        with pytest.raises(ValueError, match=r"rescale='frob' .*did you mean 'frobenius'"):
            build(rescale="frob")
        with pytest.raises(ValueError, match=r"update_rms=-1.0 is below 0"):
            build(update_rms=-1.0)
        with pytest.raises(ValueError, match=r"'b' of shape \(3,\) is not a matrix"):
            build().init({"b": jnp.ones(3)})
