"""The matrix direction and the shape factors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit import linalg
from tests.transforms.driver import gradients

TREE = gradients(5, 1, {"a": (3, 5), "b": (5, 3), "c": (2, 3, 5), "d": (4, 4)})[0]


def apply(tx, tree):
    return jax.jit(lambda x: tx.update(x, tx.init(x))[0])(tree)


def factor(x):
    u, _, vt = np.linalg.svd(np.float64(x), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("group_bytes", [1, None])
@pytest.mark.parametrize("method", ["svd", "qdwh", "ns", "gram_ns", "auto"])
def test_every_method_gives_the_polar_factor(method, group_bytes):
    options = {} if method in ("svd", "qdwh") else {"coefficients": "classic_quintic", "steps": 25}
    out = apply(optkit.orthogonalize(method, group_bytes=group_bytes, **options), TREE)
    for name, x in TREE.items():
        np.testing.assert_allclose(out[name], factor(x), atol=2e-4)


def test_coefficients_may_be_a_name_a_set_or_rows():
    rows = linalg.COEFFICIENTS["jordan"].expand(5)
    trees = [
        apply(optkit.orthogonalize("ns", coefficients=given), TREE)
        for given in ("jordan", linalg.COEFFICIENTS["jordan"], rows, np.asarray(rows))
    ]
    for other in trees[1:]:
        for name in TREE:
            np.testing.assert_allclose(trees[0][name], other[name], atol=1e-6)


def test_adaptive_multiplies_by_the_nuclear_norm_of_each_matrix():
    out = apply(optkit.orthogonalize("svd", adaptive=True), TREE)
    for name, x in TREE.items():
        nuclear = np.linalg.svd(np.float64(x), compute_uv=False).sum(-1)
        np.testing.assert_allclose(
            out[name], factor(x) * nuclear[..., None, None], rtol=1e-4, atol=1e-4
        )


def test_a_function_of_ones_own():
    out = apply(optkit.orthogonalize(lambda x: x * x.shape[-1]), TREE)
    for name, x in TREE.items():
        np.testing.assert_allclose(out[name], x * max(x.shape[-2:]), rtol=1e-6)


@pytest.mark.parametrize("form", ["one", "tree", "function"])
def test_dims(form):
    leaf = np.float32(TREE["c"])  # (2, 3, 5) read as one matrix of 10 x 3
    dims = MuonDimensionNumbers((0, 2), 1)
    given = {
        "one": dims,
        "tree": {"c": dims},
        "function": lambda p: jax.tree.map(lambda x: dims, p),
    }
    tx = optkit.orthogonalize("svd", dims=given[form])
    flat = factor(leaf.transpose(0, 2, 1).reshape(10, 3)).reshape(2, 5, 3).transpose(0, 2, 1)
    np.testing.assert_allclose(apply(tx, {"c": leaf})["c"], flat, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_dtype_of_the_iteration_leaves_that_of_the_updates(dtype):
    exact = apply(optkit.orthogonalize("ns"), TREE)
    out = apply(optkit.orthogonalize("ns", dtype=dtype), TREE)
    for name in TREE:
        assert out[name].dtype == jnp.float32
        np.testing.assert_allclose(out[name], exact[name], atol=0.1)
    assert any(np.any(np.asarray(out[name] != exact[name])) for name in TREE)
    low = apply(optkit.orthogonalize("ns"), {"a": jnp.asarray(TREE["a"], dtype)})["a"]
    assert low.dtype == dtype


def test_errors_name_leaf_or_option():
    bad = {"mlp": {"bias": jnp.ones(3)}}
    for tx in (optkit.orthogonalize(), optkit.scale_by_shape()):
        with pytest.raises(ValueError, match=r"'mlp/bias' of shape \(3,\) is not a matrix"):
            tx.update(bad, tx.init(bad))
    tx = optkit.orthogonalize(dims=MuonDimensionNumbers(0, 2))
    with pytest.raises(ValueError, match="leaf 'a' of rank 2 has no axis 2"):
        tx.update({"a": TREE["a"]}, optax.EmptyState())
    for options in ({"method": "newton"}, {"coefficients": "jordn"}, {"precondition": "l2"}):
        with pytest.raises((ValueError, KeyError), match=r"newton|jordn|l2"):
            optkit.orthogonalize(**options)


@pytest.mark.parametrize(
    ("mode", "law"),
    [
        ("max1", lambda out, into: np.sqrt(max(1, out / into))),
        ("rms_op", lambda out, into: np.sqrt(out / into)),
        ("match_rms", lambda out, into: 0.3 * np.sqrt(max(out, into))),
        ("none", lambda out, into: 1.0),
        (lambda out, into: out + 10.0 * into, lambda out, into: out + 10.0 * into),
    ],
)
def test_shape_factors(mode, law):
    ones = {
        "wide": jnp.ones((2, 6)),
        "tall": jnp.ones((6, 2)),
        "stack": jnp.ones((3, 2, 6)),
        "Conv_0": {"kernel": jnp.ones((2, 2, 3, 8))},
    }
    out = apply(optkit.scale_by_shape(mode, factor=0.3), ones)
    fans = {"wide": (6, 2), "tall": (2, 6), "stack": (6, 2), "Conv_0": (8, 12)}
    for name, (fan_out, fan_in) in fans.items():
        np.testing.assert_allclose(jax.tree.leaves(out[name])[0], law(fan_out, fan_in), rtol=1e-6)
    reference = apply(optkit.scale_by_shape(mode, factor=0.3, shape_from="last_two_axes"), ones)
    np.testing.assert_allclose(reference["Conv_0"]["kernel"], law(3, 8), rtol=1e-6)
    swapped = optkit.scale_by_shape(mode, factor=0.3, dims=MuonDimensionNumbers(1, 0))
    np.testing.assert_allclose(apply(swapped, {"w": ones["wide"]})["w"], law(2, 6), rtol=1e-6)
