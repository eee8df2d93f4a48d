"""AuON's divisor, and the part that balances rows and columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients


def apply(tx, tree):
    # Without jit: hypothesis draws other numbers each time, and operations compile once.
    return tx.update(jax.tree.map(jnp.asarray, tree), tx.init(tree))[0]


def root(u, gamma, eps=0.0):
    z = np.float64(u) / (np.linalg.norm(np.float64(u)) + eps)
    return z, np.sqrt(np.mean(np.cosh(gamma * z) ** 2))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("eps", [None, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 6.0])
def test_every_leaf_is_divided_by_its_own_number(gamma, eps, normalize):
    shapes = {"vector": (5,), "matrix": (3, 4), "bias": (2, 3), "scalar": ()}
    tree = gradients(0, 1, shapes)[0]
    out = apply(optkit.scale_by_cosh_rms(gamma, normalize=normalize, eps=eps), tree)
    for name, u in tree.items():
        z, r = root(u, gamma, eps or 0.0)
        np.testing.assert_allclose(out[name], (z if normalize else u) / r, rtol=1e-5, err_msg=name)


def test_matrices_of_a_stack_have_numbers_of_their_own_and_other_leaves_one():
    tree = gradients(1, 1, {"layers/kernel": (3, 2, 4), "norm/scale": (3, 4)})[0]
    tree["layers/kernel"] *= np.float32([1.0, 1e3, 1e-3]).reshape(3, 1, 1)
    tx = optkit.scale_by_cosh_rms(2.0, normalize=True)
    out = apply(
        tx, {"layers": {"kernel": tree["layers/kernel"]}, "norm": {"scale": tree["norm/scale"]}}
    )
    for got, u in zip(out["layers"]["kernel"], tree["layers/kernel"], strict=True):
        z, r = root(u, 2.0)
        np.testing.assert_allclose(got, z / r, rtol=1e-5)
    z, r = root(tree["norm/scale"], 2.0)
    np.testing.assert_allclose(out["norm"]["scale"], z / r, rtol=1e-5)


@given(
    st.integers(0, 10**6),
    st.floats(0.0, 8.0),
    st.floats(-25, 25),
    st.booleans(),
    st.sampled_from([(6,), (3, 4), (2, 2, 3)]),
)
def test_direction_bounds_and_scale(seed, gamma, power, normalize, shape):
    rng = np.random.default_rng(seed)
    u = rng.standard_normal(shape) * 10 ** rng.uniform(-3, 0, shape)
    u = np.float32(10.0**power * u)
    tx = optkit.scale_by_cosh_rms(gamma, normalize=normalize, roles=[("**", "bias")])
    out = np.float64(apply(tx, {"w": u})["w"])
    size = np.float64(u) / np.linalg.norm(np.float64(u)) if normalize else np.float64(u)
    ratio = np.sum(out * size) / np.sum(size * size)  # 1/R
    np.testing.assert_allclose(out, ratio * size, rtol=1e-5, atol=1e-37)
    assert 1.0 - 1e-6 <= 1.0 / ratio <= np.cosh(gamma) * (1 + 1e-6)
    if normalize:
        # Whatever the scale of the update.
        again = np.float64(apply(tx, {"w": np.float32(np.float64(u) * 10.0**-power)})["w"])
        np.testing.assert_allclose(out, again, rtol=1e-4, atol=1e-30)


def test_the_number_is_1_but_for_small_leaves():
    """R = 1 + gamma^2/(2N) + ..., with all entries equal the least, with one entry the largest."""
    for n in (64, 4096, 1 << 14):
        even, single = np.full(n, 7.0, np.float32), np.zeros(n, np.float32)
        single[3] = -2.0
        for u in (even, single):
            got = np.float64(apply(optkit.scale_by_cosh_rms(), {"b": u})["b"])
            r = np.linalg.norm(u) / np.linalg.norm(got)
            assert 0.9 * 1.5**2 / (2 * n) - 2e-7 <= r - 1.0 <= np.cosh(1.5) ** 2 / n
    assert np.cosh(1.5) ** 2 / 4096 < 1.4e-3


def test_zero_leaves_give_zeros():
    tree = {"w": jnp.zeros((3, 4)), "b": jnp.zeros(3), "none": jnp.zeros((0,)), "s": jnp.zeros(())}
    for normalize in (False, True):
        for x in jax.tree.leaves(apply(optkit.scale_by_cosh_rms(normalize=normalize), tree)):
            assert not np.any(np.asarray(x))


def test_balanced_matrices_have_the_rms_asked_for_and_rows_mean_outputs():
    tree = gradients(2, 1, {"w": (4, 6), "stack": (2, 6, 3)})[0]
    out = apply(optkit.scale_by_row_col(update_rms=0.7), tree)
    for x in (np.asarray(out["w"])[None], np.asarray(out["stack"])):
        np.testing.assert_allclose(np.sqrt(np.mean(x**2, axis=(1, 2))), 0.7, rtol=1e-5)
    # Rows first, fully: then columns of equal norm. A row is what one output sees: kernel axis 1.
    out = apply(optkit.scale_by_row_col(order="row_col", exponent=1.0), tree)["w"]
    norms = np.linalg.norm(np.asarray(out), axis=1)
    np.testing.assert_allclose(norms, norms[0], rtol=1e-5)


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match=r"gamma=50.0 is outside \[0.0, 40.0\]"):
        optkit.scale_by_cosh_rms(50.0)
    with pytest.raises(ValueError, match=r"p=0.5 is below 1"):
        optkit.scale_by_row_col(0.5)
    with pytest.raises(ValueError, match=r"order='rows'"):
        optkit.scale_by_row_col(order="rows")
    with pytest.raises(ValueError, match=r"iterations=-1 must be an integer"):
        optkit.scale_by_row_col(iterations=-1)
    with pytest.raises(ValueError, match=r"exponent=-1.0 is below 0"):
        optkit.scale_by_row_col(exponent=-1.0)
