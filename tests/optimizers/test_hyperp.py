"""HyperP: norms that stay, decay and scale that do not matter, and a head of its own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.golden.replay import DATA, load, torch_dims
from tests.transforms.driver import gradients, run

MODEL = {
    "embed/embedding": (5, 4),
    "layers/up/kernel": (2, 4, 6),
    "down/kernel": (6, 4),
    "conv/kernel": (3, 2, 4),
    "norm/scale": (4,),
    "head/kernel": (4, 5),
}
ON_SPHERES = ("layers/up/kernel", "down/kernel", "conv/kernel", "head/kernel")
PARAMS = gradients(1, 1, MODEL)[0]
GRADS = gradients(2, 40, MODEL)


def norms(path, x):
    """Norms of the matrices of a leaf, or of a leaf after each step; a convolution is one."""
    axes = (-3, -2, -1) if path.startswith("conv") else (-2, -1)
    return np.sqrt(np.sum(np.square(np.float64(x)), axis=axes))


def test_matrices_and_heads_keep_their_norm_and_the_rest_does_not():
    moved = run(optkit.hyperp(0.1), PARAMS, GRADS)[1]
    for path in ON_SPHERES:
        want = np.broadcast_to(norms(path, PARAMS[path]), norms(path, moved[path]).shape)
        np.testing.assert_allclose(norms(path, moved[path]), want, rtol=1e-6, err_msg=path)
        assert np.max(np.abs(moved[path][-1] - PARAMS[path])) > 0.1
    assert (
        abs(norms("", moved["embed/embedding"][-1]) / norms("", PARAMS["embed/embedding"]) - 1)
        > 0.01
    )


@jax.jit
def trajectory(rate, wd, grads):
    tx = optkit.hyperp(rate, weight_decay=wd, adam_weight_decay=wd)
    params = {path: jnp.asarray(PARAMS[path]) for path in ON_SPHERES}

    def step(carry, g):
        params, state = carry
        u, state = tx.update(g, state, params)
        params = optax.apply_updates(params, u)
        return (params, state), params

    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


STACKED = {path: np.stack([g[path] for g in GRADS[:4]]) for path in ON_SPHERES}


@given(rate=st.floats(1e-3, 0.5), wd=st.floats(0.0, 1.0), exponent=st.integers(-40, 40))
def test_neither_decay_nor_the_scale_of_gradients_matters(rate, wd, exponent):
    plain = trajectory(rate, 0.0, STACKED)
    chex.assert_trees_all_close(trajectory(rate, wd, STACKED), plain, atol=2e-5)
    matrices = {path: x * np.float32(2.0**exponent) for path, x in STACKED.items()}
    scaled = trajectory(rate, 0.0, matrices | {"head/kernel": STACKED["head/kernel"]})
    # Five Newton-Schulz steps from another rounding of the same matrices.
    chex.assert_trees_all_close(scaled, plain, atol=2e-5)


@given(rate=st.floats(1e-3, 0.9))
def test_no_step_turns_further_than_the_arcsine(rate):
    path = trajectory(rate, 0.0, STACKED)
    for leaf, x in path.items():
        before = np.concatenate([PARAMS[leaf][None], x[:-1]])
        radius = norms(leaf, PARAMS[leaf])
        chord = norms(leaf, np.float64(x) - before) / radius
        assert np.all(2 * np.arcsin(np.minimum(1, chord / 2)) <= np.arcsin(rate) + 1e-5)
        assert np.all(chord > 0.1 * rate)


def test_decay_that_is_measured_shrinks_the_norm_of_its_group():
    tx = optkit.hyperp(0.1, radius="current", weight_decay=0.5, adam_weight_decay=0.2)
    moved = run(tx, PARAMS, GRADS[:8])[1]
    for path, wd in (("down/kernel", 0.5), ("head/kernel", 0.2)):
        want = norms(path, PARAMS[path]) * (1 - 0.1 * wd) ** np.arange(1, 9)
        np.testing.assert_allclose(norms(path, moved[path]), want, rtol=2e-6)


def test_heads_take_adams_direction_on_their_sphere():
    head = {"w": PARAMS["head/kernel"]}
    grads = [{"w": g["head/kernel"]} for g in GRADS[:6]]
    adamh = optax.chain(optax.scale_by_adam(0.9, 0.95, 1e-8), optkit.sphere_project(0.05))
    alone = run(adamh, head, grads)[1]["w"]
    tx = optkit.hyperp(0.1, adam_learning_rate=0.05)
    np.testing.assert_allclose(run(tx, PARAMS, GRADS[:6])[1]["head/kernel"], alone, atol=2e-6)


def test_the_fixed_and_the_measured_radius_agree_without_decay():
    golden = load(DATA / "hyperp.npz")
    assert golden.hyper["weight_decay"] == 0.0
    params = {k: v for k, v in golden.tree("p0").items() if k in ("wide", "tall", "square")}
    grads = [{k: golden.tree(f"g/{t}")[k] for k in params} for t in range(golden.steps)]
    for options in ({}, {"radius": "current"}, {"per": "leaf"}, {"weight_decay": 0.3}):
        tx = optkit.hyperp(golden.hyper["lr"], dims=torch_dims, **options)
        last = {k: x[-1] for k, x in run(tx, params, grads)[1].items()}
        want = {k: golden.tree(f"p/{golden.steps - 1}")[k] for k in params}
        chex.assert_trees_all_close(last, want, atol=5e-6)


def test_a_stack_is_its_matrices_unless_the_leaf_is_one_vector():
    singles = {f"m{i}": (3, 5) for i in range(4)}
    params, grads = gradients(4, 1, singles)[0], gradients(5, 4, singles)
    stack = lambda tree: {"layers": np.stack([tree[name] for name in singles])}  # noqa: E731
    alone = run(optkit.hyperp(0.1), params, grads)[1]
    together = run(optkit.hyperp(0.1), stack(params), [stack(g) for g in grads])[1]["layers"]
    whole = run(optkit.hyperp(0.1, per="leaf"), stack(params), [stack(g) for g in grads])[1]
    for i, name in enumerate(singles):
        np.testing.assert_allclose(together[:, i], alone[name], atol=2e-5)
    total = np.linalg.norm(whole["layers"].reshape(4, -1), axis=1)
    np.testing.assert_allclose(total, np.linalg.norm(stack(params)["layers"]), rtol=1e-6)
    assert not np.allclose(whole["layers"], together, atol=1e-3)


def test_other_serves_embeddings_and_vectors_and_not_the_head():
    tx = optkit.hyperp(0.1, other=optax.sgd(1.0))
    step = run(tx, PARAMS, GRADS[:1])[0]
    for path in ("embed/embedding", "norm/scale"):
        np.testing.assert_allclose(step[path][0], -GRADS[0][path], rtol=1e-6)
    plain = run(optkit.hyperp(0.1), PARAMS, GRADS[:1])[0]
    np.testing.assert_array_equal(step["head/kernel"], plain["head/kernel"])
    shapes = jax.tree.map(jnp.asarray, PARAMS)
    rows = {row.path: row.method for row in optkit.plan(tx, shapes).rows}
    assert rows == {path: "hyperp" for path in ON_SPHERES} | {
        "head/kernel": "adamh", "embed/embedding": "other", "norm/scale": "other",
    }  # fmt: skip
    assert not optkit.plan(tx, shapes).notes


def test_coupled_decay_is_a_gradient():
    tx = optkit.hyperp(0.1, weight_decay=0.5, decay="coupled")
    own = run(tx, PARAMS, GRADS[:1])[1]["down/kernel"]
    grads = {**GRADS[0], "down/kernel": GRADS[0]["down/kernel"] + 0.5 * PARAMS["down/kernel"]}
    np.testing.assert_allclose(
        own, run(optkit.hyperp(0.1), PARAMS, [grads])[1]["down/kernel"], atol=2e-5
    )


def test_16_bit_weights_keep_float32_radii_and_their_norm():
    half = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), tree)  # noqa: E731
    params = half(PARAMS)
    u, moved, state = run(optkit.hyperp(0.1), params, [half(g) for g in GRADS])
    assert {x.dtype for x in jax.tree.leaves((u, moved))} == {jnp.dtype(jnp.bfloat16)}
    radii = [state.routes[name][-1].radius for name in ("hyperp", "adamh")]
    assert {x.dtype for x in jax.tree.leaves(radii)} == {jnp.dtype(jnp.float32)}
    for path in ON_SPHERES:
        ratio = norms(path, moved[path]) / norms(path, params[path])
        assert np.max(np.abs(ratio - 1)) < 2**-8, path
    exact = run(optkit.master_weights(optkit.hyperp(0.1)), params, [half(g) for g in GRADS])[2]
    for path in ON_SPHERES:
        ratio = norms(path, exact.master[path]) / norms(path, params[path])
        assert np.max(np.abs(ratio - 1)) < 1e-6, path


def test_zeros_are_refused_by_name():
    params = {**PARAMS, "head/kernel": np.zeros((4, 5), np.float32)}
    with pytest.raises(ValueError, match=r"leaf 'head/kernel' has the norm 0.*0\.02"):
        optkit.hyperp().init(params)
    optkit.hyperp(roles=[("head", "embedding")]).init(params)  # AdamW has no objection


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": "currant"}, r"did you mean 'current'"),
        ({"per": "stack"}, r"per='stack' is not one of"),
        ({"decay": "cautios"}, r"decay='cautios'.*did you mean 'cautious'"),
        ({"adam_weight_decay": -1.0}, r"weight_decay=-1.0 is below 0"),
        ({"coefficients": "quintic"}, r"quintic"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        optkit.hyperp(**options)
