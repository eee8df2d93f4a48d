"""Scion's balls: who stays inside, and what the initialiser puts on their edges."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit.tree import MatrixDims
from tests.transforms.driver import gradients, run

MODEL = {
    "embed/embedding": (9, 4),
    "conv/kernel": (3, 3, 2, 4),
    "blocks/up/kernel": (2, 4, 6),
    "blocks/down/kernel": (2, 6, 4),
    "up/bias": (6,),
    "norm/scale": (4,),
    "head/kernel": (4, 9),
}
SCALES = {"scale": 2.0, "head_scale": 5.0, "embedding_scale": 0.7}


def norms(params):
    """Norm of each leaf in units of its ball's radius, from the definitions; fan_in x fan_out."""
    x = {path: np.float64(leaf) for path, leaf in params.items()}
    two = lambda w: np.linalg.norm(w, 2, axis=(-2, -1)).max()  # noqa: E731
    rms = lambda v: np.sqrt(np.mean(v * v, axis=-1)).max()  # noqa: E731
    return {
        "embed/embedding": rms(x["embed/embedding"]) / 0.7,
        "conv/kernel": two(x["conv/kernel"]) * 9 / np.sqrt(4 / 2) / 2.0,
        "blocks/up/kernel": two(x["blocks/up/kernel"]) / np.sqrt(6 / 4) / 2.0,
        "blocks/down/kernel": two(x["blocks/down/kernel"]) / np.sqrt(4 / 6) / 2.0,
        "up/bias": rms(x["up/bias"]) / 2.0,
        "norm/scale": rms(x["norm/scale"]) / 2.0,
        "head/kernel": np.abs(x["head/kernel"]).max() * 4 / 5.0,
    }


PARAMS = gradients(1, 1, MODEL)[0]


@functools.cache
def begin(seed=0):
    return optkit.scion_init(PARAMS, jax.random.key(seed), **SCALES)


@jax.jit
def moved(rate, b1, params, grads):
    tx = optkit.scion(rate, b1=b1, method="svd", **SCALES)

    def step(carry, g):
        params, state = carry
        u, state = tx.update(g, state, params)
        params = optax.apply_updates(params, u)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


@given(rate=st.floats(0.01, 1.0), b1=st.floats(0.0, 0.95), seed=st.integers(0, 99))
def test_who_starts_in_the_ball_stays_in_it(rate, b1, seed):
    grads = gradients(seed, 12, MODEL)
    # Gradients that always point the same way push towards the edge.
    grads = [jax.tree.map(lambda g, first: g + 3 * first, g, grads[0]) for g in grads]
    path = moved(rate, b1, begin(), jax.tree.map(lambda *x: jnp.stack(x), *grads))
    for t in range(12):
        for leaf, norm in norms({k: x[t] for k, x in path.items()}).items():
            assert norm <= 1 + 1e-5, (leaf, t)
    assert max(norms({k: x[-1] for k, x in path.items()}).values()) > 0.5


def test_unconstrained_weights_leave_the_ball():
    grads = gradients(2, 1, MODEL) * 8
    tx = optkit.scion(0.5, constrained=False, method="svd", **SCALES)
    far = {k: x[-1] for k, x in run(tx, begin(), grads)[1].items()}
    assert all(norm > 1.5 for norm in norms(far).values())


def test_a_step_is_the_mean_of_the_weights_and_a_point_of_the_ball():
    grads = gradients(3, 1, MODEL)
    tx = optkit.scion(0.25, b1=0.0, method="svd", **SCALES)
    step = run(tx, begin(), grads)[0]
    point = {k: begin()[k] + 4 * u[0] for k, u in step.items()}
    for norm in norms(point).values():
        assert norm <= 1 + 1e-4
    # One minus the reference's momentum: with b1 = 0.75 a quarter of the first gradient is kept,
    # which a norm does not see.
    other = run(optkit.scion(0.25, b1=0.75, method="svd", **SCALES), begin(), grads)[0]
    chex.assert_trees_all_close(other, step, atol=1e-5)


def test_decay_comes_on_top_of_the_pull():
    zeros = [jax.tree.map(np.zeros_like, PARAMS)]
    plain = run(optkit.scion(0.1, **SCALES), PARAMS, zeros)[1]
    more = run(optkit.scion(0.1, weight_decay=0.5, mask=("head",), **SCALES), PARAMS, zeros)[1]
    np.testing.assert_allclose(plain["up/bias"][0], 0.9 * PARAMS["up/bias"], rtol=1e-6)
    np.testing.assert_allclose(more["up/bias"][0], 0.9 * PARAMS["up/bias"], rtol=1e-6)
    np.testing.assert_allclose(more["head/kernel"][0], 0.85 * PARAMS["head/kernel"], rtol=1e-6)


def test_rules_of_the_user_come_first():
    rules = [
        ("up", ("row_norm", 0.5)),
        ("re:down", optkit.NormBall("spectral", 3.0, max1=True)),
        ("head", "spectral"),
    ]
    shapes = {"up": (4, 6), "down": (6, 4), "head": (4, 9)}
    params, grads = gradients(4, 1, shapes)[0], gradients(5, 1, shapes)
    tx = optkit.scion(1.0, constrained=False, norms=rules, method="svd", **SCALES)
    u = {k: -x[0] for k, x in run(tx, params, grads)[0].items()}
    np.testing.assert_allclose(np.linalg.norm(u["up"], axis=0), 0.5 / 2, rtol=1e-5)
    for name, want in (("down", 3.0), ("head", 1.5)):
        singular = np.linalg.svd(np.asarray(u[name]), compute_uv=False)
        np.testing.assert_allclose(singular, want, rtol=1e-5)


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ([("up", "spectrel")], r"norm='spectrel'.*did you mean 'spectral'"),
        ([("up", ("sign", -1.0))], r"scale=-1.0 is below 0"),
        ([("up", optkit.NormBall("bias_rms", max1=True))], r"max1 is for the norm 'spectral'"),
    ],
)
def test_wrong_rules_are_named(norms, message):
    with pytest.raises(ValueError, match=message):
        optkit.scion(norms=norms)
    with pytest.raises(ValueError, match=message):
        optkit.scion_init({"up": jnp.ones((2, 2))}, jax.random.key(0), norms=norms)


def test_rules_that_name_nothing_and_vectors_under_norms_of_matrices_are_refused():
    params = {"up": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    for norms, message in (
        ([("upp", "sign")], r"norms='upp' names no leaf; did you mean 'up'"),
        ([("bias", "sign")], r"leaf 'bias' of shape \(2,\) is not a matrix"),
    ):
        tx = optkit.scion(norms=norms)
        with pytest.raises(ValueError, match=message):
            tx.update(params, tx.init(params), params)
        with pytest.raises(ValueError, match=message):
            optkit.scion_init(params, jax.random.key(0), norms=norms)


@given(seed=st.integers(0, 999))
def test_the_initialiser_keeps_its_promise(seed):
    drawn = begin(seed)
    for leaf, norm in norms(drawn).items():
        want = 0.0 if leaf == "up/bias" else 1.0
        if leaf != "norm/scale":
            assert norm == pytest.approx(want, abs=1e-5), leaf
    np.testing.assert_array_equal(drawn["norm/scale"], PARAMS["norm/scale"])
    # Not the largest only: all singular values, rows and entries are on the edge.
    for leaf, positions in (("blocks/up/kernel", 1), ("conv/kernel", 9)):
        singular = np.linalg.svd(np.asarray(drawn[leaf]), compute_uv=False)
        shape = drawn[leaf].shape
        want = 2.0 * np.sqrt(shape[-1] / shape[-2]) / positions
        np.testing.assert_allclose(singular, want, rtol=1e-5)
    lengths = np.sqrt(np.mean(np.square(drawn["embed/embedding"]), axis=1))
    np.testing.assert_allclose(lengths, 0.7, rtol=1e-5)


BALLS = [
    optkit.NormBall("col_norm", 1.5, normalized=True),
    optkit.NormBall("row_norm", 1.5),
    optkit.NormBall("row_norm", 1.5, normalized=False),
    optkit.NormBall("sign", 1.5, normalized=False),
    optkit.NormBall("spectral", 1.5, max1=True),
]


@pytest.mark.parametrize("ball", BALLS, ids=lambda ball: f"{ball.norm}-{ball.normalized}")
@pytest.mark.parametrize("transpose", [False, True])
def test_drawn_weights_are_what_the_direction_leads_to(ball, transpose):
    """On the edge: no point of the ball lies further along w than w itself."""
    ball = ball._replace(transpose=transpose)
    w = optkit.scion_init({"w": jnp.ones((5, 3))}, jax.random.key(1), norms=[("w", ball)])["w"]
    tx = optkit.lmo(
        ball.norm, scale=ball.scale, normalized=ball.normalized, transpose=ball.transpose,
        max1=ball.max1, method="svd",
    )  # fmt: skip
    np.testing.assert_allclose(tx.update({"w": w}, tx.init({"w": w}))[0]["w"], w, rtol=1e-4)


def test_numbers_depend_on_key_and_path_only():
    some = {k: PARAMS[k] for k in ("head/kernel", "blocks/up/kernel")}
    alone = optkit.scion_init(some, jax.random.key(0), **SCALES)
    chex.assert_trees_all_equal(alone, {k: begin()[k] for k in some})
    jitted = jax.jit(lambda key: optkit.scion_init(PARAMS, key, **SCALES))(jax.random.key(0))
    chex.assert_trees_all_close(jitted, begin(), atol=1e-5)
    assert not np.allclose(begin(1)["head/kernel"], begin(0)["head/kernel"])
    up = begin()["blocks/up/kernel"]
    assert not np.allclose(up[0], up[1], atol=0.1)


def test_layouts_dtypes_and_fused_blocks_of_the_initialiser():
    params = {
        "conv": jnp.ones((6, 4, 3), jnp.bfloat16),
        "qkv": jnp.ones((4, 10)),
        "empty": jnp.ones((0, 3)),
    }
    dims = {
        "conv": MuonDimensionNumbers((1, 2), 0),
        "qkv": MatrixDims(0, 1, output_blocks=(6, 4)),
        "empty": MuonDimensionNumbers(),
    }
    roles = [("conv", "conv")]
    drawn = optkit.scion_init(params, jax.random.key(0), scale=2.0, dims=dims, roles=roles)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, params)
    for k in range(3):
        singular = np.linalg.svd(np.float32(drawn["conv"][..., k]), compute_uv=False)
        np.testing.assert_allclose(singular, 2 * np.sqrt(6 / 4) / 3, rtol=2e-2)
    for block in np.split(np.asarray(drawn["qkv"]), [6], axis=1):
        singular = np.linalg.svd(block, compute_uv=False)
        np.testing.assert_allclose(singular, 2 * np.sqrt(block.shape[1] / 4), rtol=1e-5)


def test_the_plan_shows_each_leafs_norm():
    plan = optkit.plan(optkit.scion(), jax.tree.map(jnp.asarray, PARAMS))
    assert {row.path: row.method for row in plan.rows} == {
        "embed/embedding": "col_norm", "conv/kernel": "spectral_conv",
        "blocks/up/kernel": "spectral", "blocks/down/kernel": "spectral", "up/bias": "bias_rms",
        "norm/scale": "bias_rms", "head/kernel": "sign",
    }  # fmt: skip
    assert not plan.notes
