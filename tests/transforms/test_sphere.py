"""Weights on spheres: norms that stay, angles that the learning rate names, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.tree import MatrixDims
from tests.transforms.driver import gradients, run

SHAPES = {"square": (4, 4), "wide": (3, 7), "layers": (2, 3, 5)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 6, SHAPES)
ROWS, COLUMNS = 3, 5
RATE = st.floats(1e-3, 3.0)


def norms(tree):
    """Norm of every matrix."""
    return {name: np.linalg.norm(np.float64(x), axis=(-2, -1)) for name, x in tree.items()}


def at_angle(phi, seed):
    """A matrix and a unit direction at the angle phi to it."""
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.standard_normal((ROWS * COLUMNS, 2)))[0].T.reshape(2, ROWS, COLUMNS)
    return 2.5 * frame[0], np.cos(phi) * frame[0] + np.sin(phi) * frame[1]


def angle_between(a, b):
    # By the chord: the cosine has no digits left for small angles.
    a, b = (np.float64(x) / np.linalg.norm(np.float64(x)) for x in (a, b))
    return 2 * np.arcsin(min(1.0, np.linalg.norm(a - b) / 2))


@jax.jit
def turned(w, u, rate, wd):
    tx = optkit.sphere_project(rate, weight_decay=wd)
    step, _ = tx.update({"w": u}, tx.init({"w": w}), {"w": w})
    return w + step["w"]


@given(rate=RATE, phi=st.floats(0.01, 3.13), size=st.sampled_from([1e-30, 1.0, 1e25]))
def test_the_learning_rate_is_an_angle(rate, phi, size):
    w, u = at_angle(phi, 3)
    after = turned(np.float32(w), np.float32(u * size), rate, 0.0)
    want = np.arctan2(rate * np.sin(phi), 1 - rate * np.cos(phi))
    # The direction u at angle phi to w: w - rate*u stands at `want` to w.
    assert angle_between(w, after) == pytest.approx(want, abs=3e-6 * (1 + rate) / min(1, want))
    assert np.linalg.norm(after) == pytest.approx(2.5, rel=1e-6)
    if rate < 1:
        assert angle_between(w, after) <= np.arcsin(rate) + 1e-4


@given(rate=RATE)
def test_perpendicular_directions_turn_by_the_arctangent(rate):
    w, u = at_angle(np.pi / 2, 4)
    after = turned(np.float32(w), np.float32(u), rate, 0.0)
    assert angle_between(w, after) == pytest.approx(np.arctan(rate), abs=1e-5)


@given(rate=RATE, wd=st.floats(0.0, 0.3), exponent=st.integers(-90, 80), seed=st.integers(0, 9))
def test_neither_the_size_of_the_direction_nor_decay_matters(rate, wd, exponent, seed):
    w, u = (gradients(seed, 1, {"w": (ROWS, COLUMNS)})[0]["w"] for seed in (seed, seed + 50))
    plain = turned(w, u, rate, 0.0)
    np.testing.assert_array_equal(turned(w, u * np.float32(2.0**exponent), rate, 0.0), plain)
    np.testing.assert_allclose(turned(w, u, rate, wd), plain, atol=3e-6)


def test_norms_stay_over_many_steps():
    grads = gradients(5, 200, SHAPES)
    moved = run(optkit.sphere_project(0.05), PARAMS, grads)[1]
    for name, norm in norms(PARAMS).items():
        np.testing.assert_allclose(
            norms({name: moved[name]})[name], np.broadcast_to(norm, (200, *norm.shape)), rtol=1e-6
        )
    assert not np.allclose(moved["square"][-1], PARAMS["square"], atol=0.5)


def test_bfloat16_weights_keep_the_norm_that_they_began_with():
    params = {"w": jnp.asarray(gradients(6, 1, {"w": (16, 24)})[0]["w"], jnp.bfloat16)}
    grads = [
        jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), g)
        for g in gradients(7, 400, {"w": (16, 24)})
    ]
    u, moved, state = run(optkit.sphere_project(0.05), params, grads)
    assert u["w"].dtype == jnp.bfloat16 and state.radius["w"].dtype == jnp.float32
    want = np.linalg.norm(np.float64(params["w"]))
    assert float(state.radius["w"]) == pytest.approx(want, rel=1e-6)
    got = np.linalg.norm(np.float64(moved["w"]), axis=(-2, -1))
    errors = np.abs(got / want - 1)
    # Two roundings (of the step and of the sum) of 384 entries, each up to 2**-9 of its entry.
    assert errors.max() < 2**-9
    # Measured anew in every step, the same roundings add up.
    moved = run(optkit.sphere_project(0.05, radius="current"), params, grads)[1]
    drift = np.linalg.norm(np.float64(moved["w"]), axis=(-2, -1)) / want - 1
    assert np.abs(drift).max() > 3 * errors.max()


@pytest.mark.sweep
@pytest.mark.parametrize("options", [{}, {"radius": "current"}, {"radius": 0.3}, {"per": "leaf"}])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_a_direction_nothing_moves(options, dtype):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), PARAMS)
    zeros = [jax.tree.map(jnp.zeros_like, params)] * 2
    assert not any(
        map(np.any, run(optkit.sphere_project(0.5, **options), params, zeros)[0].values())
    )
    given = {"step": "given", **options}
    assert not any(map(np.any, run(optkit.sphere_project(**given), params, zeros)[0].values()))


def test_the_current_radius_shrinks_by_the_decay_and_the_direction_does_not_see_it():
    kept = run(optkit.sphere_project(0.1), PARAMS, GRADS)[1]
    tx = optkit.sphere_project(0.1, radius="current", weight_decay=0.5)
    shrunk = run(tx, PARAMS, GRADS)[1]
    for name in SHAPES:
        powers = (1 - 0.1 * 0.5) ** np.arange(1, len(GRADS) + 1)
        factors = powers.reshape(-1, *[1] * len(SHAPES[name]))
        np.testing.assert_allclose(shrunk[name], kept[name] * factors, rtol=2e-4, atol=2e-6)
    zeros = [jax.tree.map(np.zeros_like, PARAMS)]
    np.testing.assert_allclose(
        run(tx, PARAMS, zeros)[1]["wide"][0], 0.95 * PARAMS["wide"], rtol=1e-6
    )


def oracle(w, u, rate, wd, cautious, lr_in_decay):
    radius = np.linalg.norm(w)
    on = (w * u >= 0) if cautious else 1.0
    v = w - (rate if lr_in_decay else 1.0) * wd * on * w
    y = v / np.linalg.norm(v) - rate * u / np.linalg.norm(u)
    return radius * y / np.linalg.norm(y)


@pytest.mark.parametrize("decay", ["decoupled", "cautious", "independent"])
def test_decay_is_that_of_the_formula_and_of_the_masked_leaves_only(decay):
    tx = optkit.sphere_project(0.2, weight_decay=0.4, decay=decay, mask=("square",))
    moved = run(tx, PARAMS, GRADS[:1])[1]
    for name in ("square", "wide"):
        w, u = np.float64(PARAMS[name]), np.float64(GRADS[0][name])
        wd = 0.4 if name == "square" else 0.0
        want = oracle(w, u, 0.2, wd, decay == "cautious", decay != "independent")
        np.testing.assert_allclose(moved[name][0], want, atol=1e-6)


def test_a_stack_is_its_matrices_and_a_leaf_is_one_vector():
    singles = {f"m{i}": (3, 5) for i in range(2)}
    alone = run(
        optkit.sphere_project(0.3),
        {name: PARAMS["layers"][i] for i, name in enumerate(singles)},
        [{name: g["layers"][i] for i, name in enumerate(singles)} for g in GRADS],
    )[1]
    together = run(optkit.sphere_project(0.3), PARAMS, GRADS)[1]["layers"]
    for i, name in enumerate(singles):
        np.testing.assert_allclose(together[:, i], alone[name], atol=1e-6)
    whole = run(optkit.sphere_project(0.3, per="leaf"), PARAMS, GRADS)[1]["layers"]
    flat = {"layers": PARAMS["layers"].reshape(1, -1)}
    same = run(
        optkit.sphere_project(0.3), flat, [{"layers": g["layers"].reshape(1, -1)} for g in GRADS]
    )[1]["layers"]
    np.testing.assert_allclose(whole.reshape(same.shape), same, atol=1e-6)
    # Norm moved from one matrix to the other, their sum did not.
    assert abs(np.linalg.norm(whole[-1, 0]) / np.linalg.norm(PARAMS["layers"][0]) - 1) > 1e-3


def test_the_parts_of_a_fused_kernel_have_spheres_of_their_own():
    widths = (6, 2, 2)
    params, grads = gradients(8, 1, {"qkv": (4, 10)})[0], gradients(9, 3, {"qkv": (4, 10)})
    cut = lambda x: dict(zip("qkv", np.split(x["qkv"], np.cumsum(widths)[:-1], -1), strict=True))  # noqa: E731
    fused = optkit.sphere_project(0.3, dims={"qkv": MatrixDims(0, 1, output_blocks=widths)})
    together = run(fused, params, grads)[1]["qkv"]
    apart = run(optkit.sphere_project(0.3), cut(params), [cut(g) for g in grads])[1]
    np.testing.assert_allclose(
        together, np.concatenate([apart[name] for name in "qkv"], -1), atol=1e-6
    )


def test_convolutions_and_axes_in_any_order_are_whole_matrices():
    params, grads = gradients(10, 1, {"conv": (2, 3, 4)})[0], gradients(11, 3, {"conv": (2, 3, 4)})
    whole = run(optkit.sphere_project(0.3), params, grads)[1]["conv"]
    np.testing.assert_allclose(
        np.linalg.norm(whole.reshape(3, -1), axis=1), np.linalg.norm(params["conv"]), rtol=1e-6
    )
    heads = optax.contrib.MuonDimensionNumbers(0, 2)  # the axis between them is a batch
    moved = run(optkit.sphere_project(0.3, dims={"conv": heads}), params, grads)[1]["conv"]
    np.testing.assert_allclose(
        np.linalg.norm(moved, axis=(1, 3)),
        np.broadcast_to(np.linalg.norm(params["conv"], axis=(0, 2)), (3, 3)),
        rtol=1e-6,
    )


@pytest.mark.parametrize("radius", [0.7, {"square": 0.7, "wide": 1.5, "layers": 2.0}])
def test_radii_may_be_given(radius):
    moved = run(optkit.sphere_project(0.1, radius=radius), PARAMS, GRADS)[1]
    for name, x in moved.items():
        want = radius if isinstance(radius, float) else radius[name]
        np.testing.assert_allclose(np.linalg.norm(x, axis=(-2, -1)), want, rtol=1e-6)


def test_any_optimizer_can_be_put_on_spheres():
    inner = optax.adamw(0.1, weight_decay=0.1)
    moved = run(optax.chain(inner, optkit.sphere_project(step="given")), PARAMS, GRADS)[1]
    free = run(inner, PARAMS, GRADS[:1])[1]
    for name, norm in norms(PARAMS).items():
        np.testing.assert_allclose(norms({name: moved[name][-1]})[name], norm, rtol=1e-6)
        scale = norm / np.linalg.norm(free[name][0], axis=(-2, -1))
        np.testing.assert_allclose(
            moved[name][0], free[name][0] * scale[..., None, None], rtol=1e-4, atol=1e-6
        )


DEAD = {"head": np.zeros((3, 4), np.float32), "up": np.ones((2, 3), np.float32)}
DEAD_LAYER = {"layers": np.stack([np.ones((3, 4)), np.zeros((3, 4))]).astype(np.float32)}


@pytest.mark.parametrize("radius", ["init", "current", 1.0])
def test_weights_of_norm_zero_are_refused_with_their_name_and_the_remedy(radius):
    tx = optkit.sphere_project(0.1, radius=radius)
    with pytest.raises(
        ValueError, match=r"leaf 'head' has the norm 0.*Initialise it.*0\.02.*route"
    ):
        tx.init(DEAD)
    with pytest.raises(ValueError, match=r"matrix \(1,\) of leaf 'layers' has the norm 0"):
        tx.init(DEAD_LAYER)


def test_while_tracing_weights_of_norm_zero_stay_where_they_are():
    tx = optkit.sphere_project(0.1)
    params = jax.tree.map(jnp.asarray, DEAD)
    assert jax.eval_shape(tx.init, params).radius["head"].shape == ()
    state = jax.jit(tx.init)(params)
    step, _ = tx.update({"head": jnp.ones((3, 4)), "up": jnp.eye(2, 3)}, state, params)
    assert not step["head"].any() and step["up"].any()
    assert np.isfinite(np.asarray(step["up"])).all()


def test_a_gradient_that_is_no_number_stays_visible():
    grads = [{**GRADS[0], "wide": GRADS[0]["wide"] * np.nan}]
    step = run(optkit.sphere_project(0.1), PARAMS, grads)[0]
    assert np.isnan(step["wide"]).all() and np.isfinite(step["square"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"step='relative' needs a learning_rate"),
        ({"learning_rate": 0.1, "step": "given"}, r"leave out learning_rate and weight_decay"),
        ({"step": "given", "weight_decay": 0.1}, r"leave out learning_rate and weight_decay"),
        ({"step": "absolute"}, r"step='absolute' is not one of 'relative', 'given'"),
        ({"learning_rate": 0.1, "radius": "initial"}, r"did you mean 'init'\?"),
        ({"learning_rate": 0.1, "radius": 0.0}, r"radius=0.0 is no sphere; give a positive"),
        ({"learning_rate": 0.1, "radius": -1.0}, r"radius=-1.0 is below 0"),
        ({"learning_rate": 0.1, "per": "layer"}, r"per='layer' is not one of 'matrix', 'leaf'"),
        ({"learning_rate": 0.1, "decay": "coupled"}, r"decay='coupled' is not one of"),
        ({"learning_rate": 0.1, "eps": -1e-8}, r"eps=-1e-08 is below 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optkit.sphere_project(**options)


def test_what_does_not_fit_the_tree_is_named():
    with pytest.raises(ValueError, match="tree of radii has no number for leaf 'wide'"):
        optkit.sphere_project(0.1, radius={"square": 1.0, "layers": 1.0}).init(PARAMS)
    with pytest.raises(ValueError, match=r"radius of leaf 'wide'=0 is no sphere"):
        optkit.sphere_project(0.1, radius={**dict.fromkeys(SHAPES, 1.0), "wide": 0}).init(PARAMS)
    tx = optkit.sphere_project(0.1)
    with pytest.raises(ValueError, match=r"tx\.update\(updates, state, params\)"):
        tx.update(GRADS[0], tx.init(PARAMS))
    with pytest.raises(ValueError, match="'bias' of shape \\(3,\\) is not a matrix"):
        tx.init({"bias": np.ones(3, np.float32)})
    vectors = {"bias": np.ones(3, np.float32), "gain": np.float32(2.0)}
    moved = run(
        optkit.sphere_project(0.1, per="leaf"),
        vectors,
        [{"bias": np.eye(3)[0], "gain": np.float32(1)}],
    )[1]
    assert np.linalg.norm(moved["bias"][0]) == pytest.approx(3**0.5)
    assert float(moved["gain"][0]) == 2.0  # a sphere of one dimension: its two points
