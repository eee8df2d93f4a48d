"""Radial components: when they go, which view decides, and what remains of decay and of Adam."""

import chex
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

ROWS, COLUMNS = 6, 4  # fan_in, fan_out: a column is a channel
SEED = st.integers(0, 50)
# Hands on what it is given in place of a direction.
GIVEN = optax.GradientTransformationExtraArgs(
    lambda params: optax.EmptyState(),
    lambda g, state, params=None, *, given, **extra: (given, state),
)


@jax.jit
def project(p, g, u, delta=0.1, eps=0.0):
    """The projected update, and the share of the weight decay that is left of it."""
    out = []
    for decay in (0.0, 1.0):
        tx = optkit.project_radial(GIVEN, delta=delta, eps=eps, weight_decay=decay, wd_ratio=0.25)
        out.append(tx.update({"w": g}, tx.init({"w": p}), {"w": p}, given={"w": u})[0]["w"])
    return out[0], jnp.sum((out[1] - out[0]) * p) / jnp.sum(p * p)


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def without(x, p, axis):
    """x without its component along p, by vectors along the axis (None: as a whole)."""
    return x - p * np.sum(x * p, axis, keepdims=True) / np.sum(p * p, axis, keepdims=True)


def single(*arrays):
    return (np.float32(x) for x in arrays)


@given(seed=SEED, size=st.sampled_from([1e-30, 1.0, 1e25]))
def test_gradients_perpendicular_by_channel_make_updates_perpendicular_by_channel(seed, size):
    p, g, u = (draw([seed, i], ROWS, COLUMNS) for i in range(3))
    out, left = project(*single(p, size * without(g, p, 0), u))
    assert left == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(out, without(u, p, 0), atol=2e-6)
    assert np.max(np.abs(np.sum(out * p, 0))) < 1e-5


@given(seed=SEED, size=st.sampled_from([1e-30, 1.0, 1e25]))
def test_gradients_perpendicular_as_a_whole_make_updates_so(seed, size):
    p, g, u = (draw([seed, i], ROWS, COLUMNS) for i in range(3))
    # One channel points along its weights, another one against them.
    g = without(g, p, 0) + p * np.array([[3.0, -3.0, 0.0, 0.0]]) / np.linalg.norm(p, axis=0)
    g = without(g, p, None)
    out, left = project(*single(p, size * g, u))
    assert left == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(out, without(u, p, None), atol=2e-6)


@given(seed=SEED, size=st.sampled_from([1e-30, 1.0, 1e25]))
def test_gradients_along_the_weights_change_nothing(seed, size):
    p, u = (draw([seed, i], ROWS, COLUMNS) for i in range(2))
    out, left = project(*single(p, size * p, u))
    np.testing.assert_array_equal(out, np.float32(u))
    assert left == pytest.approx(1.0, abs=1e-5)


@given(seed=SEED, cosine=st.floats(0.0, 0.09))
def test_the_bound_is_that_of_the_largest_cosine(seed, cosine):
    """One channel at a known angle decides for all."""
    p, g, u = (draw([seed, i], ROWS, COLUMNS) for i in range(3))
    p, g = (x / np.linalg.norm(x, axis=0) for x in (p, g))
    g = without(g, p, 0)
    g /= np.linalg.norm(g, axis=0)
    g[:, 2] = np.sqrt(1 - cosine**2) * g[:, 2] + cosine * p[:, 2]
    # The bound of the whole matrix, half of a channel's, is met by a quarter of the cosine only.
    bound = 0.05
    inside = cosine < bound
    if abs(cosine - bound) < 1e-4:
        return
    out, left = project(*single(p, g, u), delta=bound * np.sqrt(ROWS))
    assert left == pytest.approx(0.25, abs=1e-5)
    np.testing.assert_allclose(out, without(u, p, 0 if inside else None), atol=2e-6)


def test_a_gradient_of_0_is_perpendicular_and_weights_of_0_have_no_radius():
    p, u = draw(1, ROWS, COLUMNS), draw(2, ROWS, COLUMNS)
    out, _ = project(*single(p, 0 * p, u))
    np.testing.assert_allclose(out, without(u, p, 0), atol=2e-6)
    p[:, 1] = 0.0
    out, _ = project(*single(p, 0 * p, u))
    np.testing.assert_array_equal(out[:, 1], np.float32(u)[:, 1])
    assert np.isfinite(out).all()


def test_every_matrix_of_a_stack_is_tested_by_itself():
    p, g, u = (draw(i, 2, ROWS, COLUMNS) for i in range(3))
    g[0], g[1] = without(g[0], p[0], 0), p[1]
    out, _ = project(*single(p, g, u))
    np.testing.assert_allclose(out[0], without(u[0], p[0], 0), atol=2e-6)
    np.testing.assert_array_equal(out[1], np.float32(u[1]))


def _update(tx, p, g, u):
    params = {name: jnp.float32(x) for name, x in p.items()}
    g, u = (jax.tree.map(jnp.float32, tree) for tree in (g, u))
    return tx.update(g, tx.init(params), params, given=u)[0]


def test_the_channel_is_the_output_wherever_it_lies_and_a_token_of_a_table():
    p, g, u = (draw(i, ROWS, COLUMNS) for i in range(3))
    trees = [{"w": x, "t": x.T, "table": {"embedding": x.T}} for x in (p, without(g, p, 0), u)]
    dims = {"w": MatrixDims(0, 1), "t": MatrixDims(1, 0), "table": None}
    named = _update(optkit.project_radial(GIVEN, dims=dims), *[dict(x) for x in _flat(trees)])
    np.testing.assert_allclose(named["w"], without(u, p, 0), atol=2e-6)
    np.testing.assert_allclose(named["t"].T, named["w"], atol=1e-6)
    np.testing.assert_array_equal(named["table"], np.float32(u.T))  # None: no matrix
    by_role = optkit.project_radial(GIVEN, roles=[("table", "embedding")])
    table = _update(by_role, *[{"table": x["table"]} for x in _flat(trees)])
    np.testing.assert_allclose(table["table"].T, named["w"], atol=1e-6)


def _flat(trees):
    return [x | {"table": x["table"]["embedding"]} for x in trees]


def test_fused_blocks_are_projected_as_they_are_apart():
    """Query, key and value in one kernel: one perpendicular by channel, one along the weights."""
    p, first, g = (draw(i, ROWS, 3 * COLUMNS) for i in range(3))
    g[:, :COLUMNS] = without(g, p, 0)[:, :COLUMNS]
    g[:, COLUMNS : 2 * COLUMNS] = p[:, COLUMNS : 2 * COLUMNS]
    apart = [
        {name: np.float32(x) for name, x in zip("qkv", np.split(tree, 3, axis=1), strict=True)}
        for tree in (p, first, g)
    ]
    options = {"b1": 0.9, "weight_decay": 0.1, "project_buffer": True}
    want = run(optkit.sgdp(0.1, **options), apart[0], apart[1:])[1]
    dims = MatrixDims(0, 1, output_blocks=3)
    whole = [{"qkv": np.float32(tree)} for tree in (p, first, g)]
    got = run(optkit.sgdp(0.1, dims=dims, **options), whole[0], whole[1:])[1]["qkv"]
    np.testing.assert_allclose(got, np.concatenate([want[x] for x in "qkv"], -1), atol=1e-6)


SHAPES = {"kernel": (5, 3), "bias": (3,)}
PARAMS = gradients(3, 1, SHAPES)[0]
GRADS = gradients(4, 6, SHAPES)


def test_delta_0_is_adamw_and_vectors_are_always():
    plain = run(optkit.adamw(0.1, weight_decay=0.3), PARAMS, GRADS)[1]
    never = run(optkit.adamp(0.1, weight_decay=0.3, delta=0.0), PARAMS, GRADS)[1]
    chex.assert_trees_all_close(never, plain, rtol=1e-6)
    always = run(optkit.adamp(0.1, weight_decay=0.3, delta=99.0), PARAMS, GRADS)[1]
    np.testing.assert_allclose(always["bias"], plain["bias"], rtol=1e-6)
    assert np.max(np.abs(always["kernel"] - plain["kernel"])) > 0.01


def test_sgdp_without_projection_is_sgd():
    plain = run(optax.sgd(0.1, 0.9, nesterov=True), PARAMS, GRADS)[1]
    never = run(optkit.sgdp(0.1, b1=0.9, nesterov=True, delta=0.0), PARAMS, GRADS)[1]
    chex.assert_trees_all_close(never, plain, rtol=1e-6)


def test_scale_invariant_weights_grow_more_slowly_and_step_as_adam_does():
    """A layer whose columns are normalized: the radial part of Adam's step is all that goes."""
    truth, x = draw(5, 8, 4), draw(6, 64, 8)

    def loss(params):
        w = params["kernel"]
        return jnp.mean(jnp.square(x @ (w / jnp.linalg.norm(w, axis=0, keepdims=True) - truth)))

    start = {"kernel": jnp.float32(draw(7, 8, 4))}

    @jax.jit
    def grown():
        lengths, first = [], []
        for factory in (optkit.adamp, optkit.adamw):
            tx = factory(0.05, weight_decay=0.0)

            def step(carry, _, tx=tx):
                params, state = carry
                u, state = tx.update(jax.grad(loss)(params), state, params)
                params = optax.apply_updates(params, u)
                return (params, state), (jnp.linalg.norm(params["kernel"]), u["kernel"])

            out = jax.lax.scan(step, (start, tx.init(start)), length=60)[1]
            lengths.append(out[0])
            first.append(out[1][0])
        return lengths, first

    (ours, adams), (u, v) = jax.device_get(grown())
    p = np.float64(start["kernel"])
    np.testing.assert_allclose(u, without(np.float64(v), p, 0), atol=1e-6)
    begin = np.linalg.norm(p)
    assert begin < ours[-1] < adams[-1]
    assert ours[-1] - begin < 0.5 * (adams[-1] - begin)


def test_what_makes_no_sense_is_refused():
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=r"carry='mu'.*EmptyState.*no field"):
        optkit.project_radial(GIVEN, carry="mu").init(params)
    with pytest.raises(ValueError, match=r"leaf 'b' of shape .* is not a matrix"):
        optkit.project_radial(GIVEN, leaves=("w", "b")).init(params)
    with pytest.raises(ValueError, match="leaves='c' names no leaf"):
        optkit.project_radial(GIVEN, leaves="c").init(params)
    with pytest.raises(ValueError, match="exclude each other"):
        optkit.sgdp(0.1, nesterov=True, project_buffer=True)
    with pytest.raises(ValueError, match=r"dampening=0\.5 needs kind='heavy_ball'"):
        optkit.momentum(0.9, dampening=0.5)
    with pytest.raises(ValueError, match="nesterov='two'"):
        optkit.scale_by_adam(nesterov="two")
