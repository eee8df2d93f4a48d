"""Norms, their duals and their balls: what the direction under each norm has to be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit.transforms.balls import as_ball
from optkit.tree import MatrixDims

# fan_in x fan_out, as in Flax.
SHAPES = ((4, 4), (3, 7), (7, 3), (1, 6))


def primal(ball, w):
    """The norm of w (fan_out, fan_in), from its definition."""
    a, b = w.shape
    normalized = ball.norm != "col_norm" if ball.normalized is None else ball.normalized
    if ball.norm == "spectral":
        factor = np.sqrt(a / b) if normalized else np.sqrt(a)
        return np.linalg.norm(w, 2) / (max(1.0, factor) if ball.max1 else factor)
    if ball.norm == "sign":
        return np.abs(w).max() * (b if normalized else 1)
    if ball.norm == "col_norm":
        return np.linalg.norm(w, axis=0).max() / np.sqrt(a) * (b if normalized else 1)
    return np.linalg.norm(w, axis=1).max() * (np.sqrt(b) if normalized else 1)


def dual(ball, d):
    """The largest <d, w> over the ball of radius 1."""
    a, b = d.shape
    normalized = ball.norm != "col_norm" if ball.normalized is None else ball.normalized
    if ball.norm == "spectral":
        factor = np.sqrt(a / b) if normalized else np.sqrt(a)
        return np.linalg.norm(d, "nuc") * (max(1.0, factor) if ball.max1 else factor)
    if ball.norm == "sign":
        return np.abs(d).sum() / (b if normalized else 1)
    if ball.norm == "col_norm":
        return np.linalg.norm(d, axis=0).sum() * np.sqrt(a) / (b if normalized else 1)
    return np.linalg.norm(d, axis=1).sum() / (np.sqrt(b) if normalized else 1)


BALLS = [
    optkit.NormBall("spectral"),
    optkit.NormBall("spectral", normalized=False),
    optkit.NormBall("spectral", max1=True),
    *(
        optkit.NormBall(name, normalized=normalized)
        for name in ("sign", "col_norm", "row_norm")
        for normalized in (None, True, False)
    ),
]


def label(ball):
    flags = {None: "", True: "normalized", False: "plain"}[ball.normalized]
    return "-".join(filter(None, (ball.norm, flags, "max1" * ball.max1)))


def lmo(ball, **options):
    ball = as_ball(ball)
    return optkit.lmo(
        ball.norm, scale=ball.scale, normalized=ball.normalized, transpose=ball.transpose,
        max1=ball.max1, method="svd", **options,
    )  # fmt: skip


APPLY = jax.jit(lambda tx, d: tx.update(d, tx.init(d))[0], static_argnums=0)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("ball", BALLS, ids=label)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 99), exponent=st.integers(-90, 80))
def test_the_direction_attains_the_dual_norm_on_the_edge_of_the_ball(ball, shape, seed, exponent):
    d = draw(seed, *shape)
    u = np.float64(APPLY(lmo(ball._replace(scale=2.5)), {"w": d})["w"])
    assert primal(ball, u.T) == pytest.approx(2.5, rel=1e-5)
    assert np.sum(np.float64(d) * u) == pytest.approx(2.5 * dual(ball, np.float64(d.T)), rel=1e-5)
    far = APPLY(lmo(ball._replace(scale=2.5)), {"w": d * np.float32(2.0**exponent)})["w"]
    np.testing.assert_allclose(far, u, rtol=2e-5, atol=2e-5)


@given(size=st.integers(1, 9), seed=st.integers(0, 99))
def test_vectors_are_divided_by_their_root_mean_square(size, seed):
    d = draw(seed, size)
    u = np.float64(APPLY(optkit.lmo("bias_rms", scale=3.0), {"b": d})["b"])
    assert np.sqrt(np.mean(u * u)) == pytest.approx(3.0, rel=1e-5)
    want = 3.0 * np.sqrt(size) * np.linalg.norm(np.float64(d))
    assert np.sum(np.float64(d) * u) == pytest.approx(want, rel=1e-5)


def test_scalars_become_signs_and_stacked_vectors_are_vectors():
    d = {"gain": np.float32(-2.0), "stack": draw(0, 2, 5)}
    u = APPLY(optkit.lmo("bias_rms"), d)
    assert float(u["gain"]) == -1.0
    for i in range(2):
        alone = APPLY(optkit.lmo("bias_rms"), {"b": d["stack"][i]})["b"]
        np.testing.assert_allclose(u["stack"][i], alone, rtol=1e-6)


@pytest.mark.parametrize("ball", BALLS, ids=label)
def test_zeros_stay_zeros_and_a_dead_row_or_column_too(ball):
    d = draw(1, 3, 4)
    assert not APPLY(lmo(ball), {"w": np.zeros_like(d)})["w"].any()
    if ball.norm != "spectral":
        d[1], d[:, 2] = 0.0, 0.0
        u = np.asarray(APPLY(lmo(ball), {"w": d})["w"])
        assert np.isfinite(u).all() and not u[1].any() and not u[:, 2].any()


@pytest.mark.parametrize("ball", BALLS, ids=label)
def test_stacks_and_fused_kernels_are_their_matrices(ball):
    d = draw(2, 2, 3, 5)
    stacked = APPLY(lmo(ball), {"layers": d})["layers"]
    fused = lmo(ball, dims=MatrixDims(0, 1, output_blocks=(5, 5)))
    joined = APPLY(fused, {"qkv": np.concatenate(list(d), -1)})["qkv"]
    for i in range(2):
        alone = APPLY(lmo(ball), {"w": d[i]})["w"]
        np.testing.assert_allclose(stacked[i], alone, atol=1e-5)
        np.testing.assert_allclose(joined[:, 5 * i : 5 * i + 5], alone, atol=1e-5)


@pytest.mark.parametrize("ball", BALLS, ids=label)
def test_the_layout_of_torch_and_the_transposed_reading(ball):
    d, torch = draw(3, 3, 5), MuonDimensionNumbers(1, 0)
    want = np.asarray(APPLY(lmo(ball), {"w": d})["w"])
    np.testing.assert_allclose(APPLY(lmo(ball, dims=torch), {"w": d.T})["w"].T, want, atol=1e-6)
    # Two wrongs: dims that call the tokens outputs, and the option that says so.
    undone = APPLY(lmo(ball._replace(transpose=True), dims=torch), {"w": d})["w"]
    np.testing.assert_allclose(undone, want, atol=1e-6)


def test_convolutions_in_both_layouts():
    flax = draw(4, 3, 3, 4, 6)  # (height, width, in, out)
    torch = flax.transpose(3, 2, 0, 1)
    u = APPLY(optkit.lmo("spectral_conv", method="svd", roles=[("w", "conv")]), {"w": flax})["w"]
    dims = MuonDimensionNumbers((1, 2, 3), 0)
    v = APPLY(optkit.lmo("spectral_conv", method="svd", dims=dims), {"w": torch})["w"]
    np.testing.assert_allclose(np.asarray(u).transpose(3, 2, 0, 1), v, atol=1e-6)
    singular = np.linalg.svd(np.asarray(v).reshape(6, -1), compute_uv=False)
    np.testing.assert_allclose(singular, np.sqrt(6 / 4) / 9, rtol=1e-5)
    line = APPLY(optkit.lmo("spectral_conv", method="svd", dims=MuonDimensionNumbers((1, 2), 0)),
                 {"w": torch[..., 0]})["w"]  # fmt: skip
    singular = np.linalg.svd(np.asarray(line).reshape(6, -1), compute_uv=False)
    np.testing.assert_allclose(singular, np.sqrt(6 / 4) / 3, rtol=1e-5)


def test_auto_goes_by_role():
    d = {
        "embed": {"embedding": draw(5, 9, 4)},
        "conv": {"kernel": draw(6, 3, 4, 4)},
        "up": {"kernel": draw(7, 4, 6), "bias": draw(8, 6)},
        "norm": {"scale": draw(9, 4)},
        "head": {"kernel": draw(10, 4, 9), "bias": draw(11, 9)},
    }
    u = APPLY(optkit.lmo(scale=2.0), d)
    norms = {
        "embed/embedding": "col_norm", "conv/kernel": "spectral_conv", "up/kernel": "spectral",
        "up/bias": "bias_rms", "norm/scale": "bias_rms", "head/kernel": "sign",
        "head/bias": "bias_rms",
    }  # fmt: skip
    for path, norm in norms.items():
        part, name = path.split("/")
        dims = MuonDimensionNumbers((0, 1), 2) if part == "conv" else None
        alone = APPLY(optkit.lmo(norm, scale=2.0, dims=dims), {"x": d[part][name]})["x"]
        np.testing.assert_allclose(u[part][name], alone, atol=1e-6, err_msg=path)
    # Vectors are vectors whatever they are called.
    called = optkit.lmo(scale=2.0, roles=[("head", "head")])
    np.testing.assert_array_equal(APPLY(called, d)["head"]["bias"], u["head"]["bias"])


def test_eps_is_added_to_the_norm():
    d = {"w": np.float32([[3e-3, 0.0], [4e-3, 1.0]])}  # rows are inputs
    u = APPLY(optkit.lmo("col_norm", eps=0.5), d)["w"]
    rms = np.sqrt(np.mean(np.square(d["w"]), axis=1, keepdims=True))
    np.testing.assert_allclose(u, d["w"] / (rms + 0.5), rtol=1e-6)


def test_16_bit_updates_are_rounded_once():
    d = {"w": jnp.asarray(draw(12, 4, 6), jnp.bfloat16)}
    for norm in ("spectral", "sign", "col_norm", "row_norm", "bias_rms"):
        low = APPLY(optkit.lmo(norm, scale=0.3), d)["w"]
        high = APPLY(optkit.lmo(norm, scale=0.3), {"w": d["w"].astype(jnp.float32)})["w"]
        np.testing.assert_array_equal(low, high.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optkit.lmo("spectrel"), r"norm='spectrel' is not one of.*did you mean 'spectral'"),
        (lambda: optkit.lmo("ColNorm"), r"did you mean 'col_norm'\?"),
        (lambda: optkit.lmo("auto", max1=True), r"norm='auto' takes scale only"),
        (lambda: optkit.lmo("sign", max1=True), r"max1 is for the norm 'spectral', not for 'sign'"),
        (lambda: optkit.lmo("bias_rms", normalized=True), r"normalized=True means nothing to"),
        (lambda: optkit.lmo("spectral_conv", transpose=True), r"transpose means nothing to"),
        (lambda: optkit.lmo("sign", scale=-1.0), r"scale=-1.0 is below 0"),
        (lambda: optkit.lmo("sign", eps=-1.0), r"eps=-1.0 is below 0"),
        (
            lambda: optkit.lmo("sign").update({"b": np.zeros(3, "f4")}, ()),
            r"leaf 'b' of shape \(3,\)",
        ),
    ],
)
def test_what_is_wrong_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_signs_without_fans_take_vectors_too():
    tx = optax.chain(optkit.lmo("sign", normalized=False, scale=0.5))
    assert APPLY(tx, {"b": np.float32([-3.0, 0.0, 1e-30])})["b"].tolist() == [-0.5, 0.0, 0.5]
