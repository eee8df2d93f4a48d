"""Norms that come back after each step, or every so many, of the chosen leaves only."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {
    "dense/kernel": (4, 3), "layers/kernel": (2, 3, 4), "head/kernel": (3, 5), "dense/bias": (3,),
}  # fmt: skip
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 7, SHAPES)
CHOSEN = ("dense/kernel", "layers/kernel")


def norms(x):
    return np.linalg.norm(np.float64(x), axis=(-2, -1))


def test_norms_stay_and_other_leaves_are_the_inner_optimizers():
    moved = run(optkit.project_to_norm(optax.adam(0.1)), PARAMS, GRADS)[1]
    plain = run(optax.adam(0.1), PARAMS, GRADS)[1]
    for name, start in PARAMS.items():
        if name in CHOSEN:
            np.testing.assert_allclose(
                norms(moved[name]), np.broadcast_to(norms(start), norms(moved[name]).shape), 1e-6
            )
            # The first step leads along the inner one's ray.
            scale = norms(start)[..., None, None] / norms(plain[name][0])[..., None, None]
            np.testing.assert_allclose(moved[name][0], plain[name][0] * scale, rtol=2e-6, atol=1e-6)
        else:
            np.testing.assert_array_equal(moved[name], plain[name])


def test_every_third_step_projects_exactly_and_the_others_do_nothing():
    tx = optkit.project_to_norm(optax.sgd(0.3), every=3)
    moved, plain = run(tx, PARAMS, GRADS)[1], run(optax.sgd(0.3), PARAMS, GRADS)[1]
    name = "dense/kernel"
    found = norms(moved[name]) / norms(PARAMS[name])
    np.testing.assert_allclose(found[[2, 5]], 1.0, rtol=1e-6)
    assert np.all(np.abs(found[[0, 1, 3, 4, 6]] - 1) > 1e-3)
    np.testing.assert_array_equal(moved[name][:2], plain[name][:2])
    np.testing.assert_allclose(
        moved[name][3], moved[name][2] - np.float32(0.3) * GRADS[3][name], atol=1e-6
    )


GIVEN = optax.GradientTransformation(
    lambda params: optax.EmptyState(), lambda u, state, params=None: (u, state)
)


@jax.jit
def stepped(w, u):
    tx = optkit.project_to_norm(GIVEN)
    out, _ = tx.update({"w": u}, tx.init({"w": w}), {"w": w})
    return out["w"]


@given(seed=st.integers(0, 50), angle=st.floats(0.0, 3.1), size=st.sampled_from([1e-12, 1.0, 1e12]))
def test_a_step_that_keeps_the_norm_is_left_as_it_is(seed, angle, size):
    rng = np.random.default_rng(seed)
    frame = np.linalg.qr(rng.standard_normal((12, 2)))[0].T.reshape(2, 3, 4)
    w = size * frame[0]
    u = size * (np.cos(angle) * frame[0] + np.sin(angle) * frame[1]) - w
    np.testing.assert_allclose(stepped(np.float32(w), np.float32(u)), u, atol=4e-7 * size)


@given(seed=st.integers(0, 50), size=st.sampled_from([0.0, 1e-30, 1e-3, 1e25]))
def test_projection_is_idempotent_at_any_size_of_the_step(seed, size):
    w, u = (np.random.default_rng([seed, i]).standard_normal((3, 4)) for i in range(2))
    w, u = np.float32(w), np.float32(size * u)
    once = w + stepped(w, u)
    assert norms(once) == pytest.approx(norms(w), rel=1e-6)
    np.testing.assert_allclose(stepped(once, 0 * u), 0.0, atol=5e-7)


def test_the_effective_learning_rate_stays():
    """Steps perpendicular to the weights turn them by the same angle for ever, or ever less."""
    w = {"w": jnp.float32(np.random.default_rng(3).standard_normal((4, 4)))}

    @jax.jit
    def angles():
        out = []
        for tx in (optkit.project_to_norm(GIVEN), GIVEN):

            def step(carry, u, tx=tx):
                params, state = carry
                w = params["w"]
                u = u - w * jnp.sum(u * w) / jnp.sum(w * w)
                u = u / jnp.linalg.norm(u)
                out, state = tx.update({"w": u}, state, params)
                new = optax.apply_updates(params, out)
                unit = [x / jnp.linalg.norm(x) for x in (w, new["w"])]
                return (new, state), 2 * jnp.arcsin(jnp.linalg.norm(unit[0] - unit[1]) / 2)

            u = jnp.float32(np.random.default_rng(4).standard_normal((20, 4, 4)))
            out.append(jax.lax.scan(step, (w, tx.init(w)), u)[1])
        return out

    ours, plain = (np.asarray(x) for x in angles())
    np.testing.assert_allclose(ours, np.arctan(1 / norms(w["w"])), rtol=1e-5)
    assert plain[-1] < 0.8 * ours[-1] and np.all(np.diff(plain) < 0)


def test_scale_and_offset_of_a_module_share_their_first_norm():
    shapes = {"a/norm/scale": (6,), "a/norm/bias": (6,), "layers/ln/scale": (2, 5)}
    params = {"a/norm/scale": np.ones(6), "a/norm/bias": np.zeros(6)}
    params |= {"layers/ln/scale": np.array([[1.0] * 5, [2.0] * 5])}
    params = {name: np.float32(x) for name, x in params.items()}
    grads = gradients(5, 4, shapes)
    inner = optax.sgd(0.2)
    tx = optkit.project_to_norm(inner, leaves=lambda path, x: False, joint="re:(norm|ln)/")
    moved = run(tx, params, grads)[1]
    together = np.concatenate([moved["a/norm/scale"], moved["a/norm/bias"]], -1)
    np.testing.assert_allclose(np.linalg.norm(together, axis=-1), np.sqrt(6), rtol=1e-6)
    assert np.std(np.linalg.norm(moved["a/norm/bias"], axis=-1)) > 0.01
    rows = np.linalg.norm(moved["layers/ln/scale"], axis=-1)
    np.testing.assert_allclose(rows, np.broadcast_to([5**0.5, 20**0.5], rows.shape), rtol=1e-6)
    ray = {name: x - np.float32(0.2) * grads[0][name] for name, x in params.items()}
    first = np.concatenate([ray["a/norm/scale"], ray["a/norm/bias"]])
    np.testing.assert_allclose(together[0], first * np.sqrt(6) / np.linalg.norm(first), atol=1e-6)


def test_radii_may_be_named():
    tx = optkit.project_to_norm(optax.sgd(0.1), radius=2.0, leaves="dense/kernel")
    state = tx.init(PARAMS)
    out, _ = tx.update(GRADS[0], state, PARAMS)
    assert norms(PARAMS["dense/kernel"] + out["dense/kernel"]) == pytest.approx(2.0, rel=1e-6)
    chex.assert_trees_all_equal(jax.tree.leaves(state.radius), [jnp.float32(2.0)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every=0"),
        ({"radius": "current"}, "projects nothing"),
        ({"radius": -1.0}, r"radius=-1\.0"),
        ({"per": "row"}, "per='row'"),
    ],
    ids=str,
)
def test_a_wrong_option_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        optkit.project_to_norm(optax.sgd(0.1), **options)


def test_an_order_that_makes_no_sense_is_refused():
    params = {"w": jnp.ones((2, 2), jnp.bfloat16)}
    twice = optkit.project_to_norm(optax.chain(optkit.project_to_norm(optax.sgd(0.1))))
    with pytest.raises(ValueError, match="around a ProjectToNormState: two projections"):
        twice.init(params)
    on_sphere = optax.chain(optax.sgd(0.1), optkit.sphere_project(step="given"))
    with pytest.raises(ValueError, match="around a SphereProjectState: two projections"):
        optkit.project_to_norm(on_sphere).init(params)
    low = optkit.project_to_norm(optkit.master_weights(optax.sgd(0.1)))
    with pytest.raises(ValueError, match="around a MasterWeightsState: 16-bit rounding comes last"):
        low.init(params)
    optkit.master_weights(optkit.project_to_norm(optax.sgd(0.1))).init(params)


def test_leaves_that_cannot_be_projected_are_named():
    tx = optkit.project_to_norm(optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"leaf 'w' has the norm 0"):
        tx.init({"w": jnp.zeros((2, 2))})
    with pytest.raises(ValueError, match="leaves='nowhere' names no leaf"):
        optkit.project_to_norm(optax.sgd(0.1), leaves="nowhere").init(PARAMS)
    wrong = optkit.project_to_norm(optax.sgd(0.1), joint="dense")
    with pytest.raises(ValueError, match="module 'dense' are no vectors of equal leading axes"):
        wrong.init({"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}})


WIDTH, LABELS, STEPS, TASKS = 64, 10, 300, 10


@pytest.mark.slow
def test_a_network_goes_on_learning_labels_that_are_drawn_anew():
    """Losses at the end of each task of learning 256 random labels, with layers normalized."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (256, 32))
    labels = jax.random.randint(keys[1], (TASKS, 256), 0, LABELS)
    sizes = {"dense_0/kernel": (32, WIDTH), "dense_1/kernel": (WIDTH, WIDTH)}
    sizes |= {"head/kernel": (WIDTH, LABELS)}
    start = {
        name: jax.random.normal(key, size) / size[0] ** 0.5
        for key, (name, size) in zip(keys[2:], sizes.items(), strict=True)
    }

    def loss(p, y):
        h = x
        for name in ("dense_0/kernel", "dense_1/kernel"):
            h = h @ p[name]
            h = h - h.mean(-1, keepdims=True)
            h = jax.nn.relu(h / jnp.sqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6))
        return optax.softmax_cross_entropy_with_integer_labels(h @ p["head/kernel"], y).mean()

    def ends(tx):
        def task(carry, y):
            def step(carry, _):
                p, state = carry
                value, g = jax.value_and_grad(loss)(p, y)
                u, state = tx.update(g, state, p)
                return (optax.apply_updates(p, u), state), value

            carry, values = jax.lax.scan(step, carry, length=STEPS)
            return carry, values[-1]

        return jax.lax.scan(task, (start, tx.init(start)), labels)[1]

    adam = optax.adam(3e-3)
    plain, ours = jax.jit(lambda: (ends(adam), ends(optkit.project_to_norm(adam))))()
    assert plain[-1] > 2.5 * plain[0]
    assert ours[-1] < 0.5 * plain[-1]
