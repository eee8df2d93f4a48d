"""What the papers say of the element-wise recipes, and AdamW against Optax."""

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

SHAPES = {"kernel": (3, 2), "bias": (4,)}
PARAMS = gradients(8, 1, SHAPES)[0]
GRADS = gradients(7, 8, SHAPES)


def stacked(grads, name):
    return np.stack([g[name] for g in grads])


@given(rate=st.floats(0.01, 0.5), decay=st.floats(0.1, 2.0), seed=st.integers(0, 5))
@pytest.mark.slow
def test_lion_stays_in_its_box(rate, decay, seed):
    grads = gradients(seed, 8, SHAPES)
    moved = RUN_LION(rate, decay, jax.tree.map(lambda *x: jnp.stack(x), *grads))
    for name, start in PARAMS.items():
        bound = np.maximum(np.abs(start), 1 / decay)
        for p in np.asarray(moved[name]):
            assert np.all(np.abs(p) <= bound * (1 + 1e-5))
            bound = np.maximum(np.abs(p), 1 / decay)


@jax.jit
def RUN_LION(rate, decay, grads):
    tx = optkit.lion(rate, weight_decay=decay)

    def step(carry, g):
        params, state = carry
        u, state = tx.update(g, state, params)
        params = optax.apply_updates(params, u)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, PARAMS)
    return jax.lax.scan(step, (params, tx.init(params)), grads)[1]


def test_lion_with_equal_rates_is_signum_and_signum_without_memory_is_signsgd():
    def moved(tx):
        return run(tx, PARAMS, GRADS)[1]

    chex.assert_trees_all_close(
        moved(optkit.lion(0.1, b1=0.8, b2=0.8, weight_decay=0.2)),
        moved(optkit.signum(0.1, b1=0.8, weight_decay=0.2)), atol=1e-6
    )  # fmt: skip
    chex.assert_trees_all_close(
        moved(optkit.signum(0.1, b1=0.0)), moved(optkit.signsgd(0.1)), atol=1e-7
    )
    chex.assert_trees_all_close(
        moved(optkit.lion_k(0.1, kind="l1", weight_decay=0.2)),
        moved(optkit.lion(0.1, weight_decay=0.2)), atol=1e-7
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["lion", "signsgd", "signum", "cautious_lion", "cwd_lion", "muon", "muon_rms", "muon_dion"],
)
@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_the_size_of_the_gradient_does_not_matter(name, factor):
    options = {"other": optkit.lion(0.1)} if name.startswith("muon") else {}
    tx = optkit.catalogue.get(name).factory(0.1, **options)
    scaled = jax.tree.map(lambda g: np.float32(g * np.float32(factor)), GRADS)
    chex.assert_trees_all_close(run(tx, PARAMS, scaled)[1], run(tx, PARAMS, GRADS)[1], atol=1e-4)


@pytest.mark.parametrize("name", ["lion", "signsgd", "signum"])
def test_entries_move_by_the_learning_rate_or_not_at_all(name):
    u = run(optkit.catalogue.get(name).factory(0.25), PARAMS, GRADS)[0]
    assert set(np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(u)]))) == {0.25}


def test_cautious_adam_and_grams_start_as_adam_and_then_differ():
    adam = optkit.adamw(0.1, eps=1e-6, eps_mode="uncorrected", weight_decay=0.0)
    base = run(adam, PARAMS, GRADS)[0]
    for name in ("cautious_adamw", "grams"):
        u = run(optkit.catalogue.get(name).factory(0.1), PARAMS, GRADS)[0]
        for key in PARAMS:
            np.testing.assert_allclose(u[key][0], base[key][0], rtol=1e-5)
            g = stacked(GRADS, key)
            assert np.all(np.asarray(u[key]) * g <= 0)
            assert np.any(np.abs(u[key] - base[key]) > 1e-3)
            if name == "grams":
                np.testing.assert_allclose(np.abs(u[key]), np.abs(base[key]), rtol=1e-5)


def test_cautious_lion_rescales_by_count():
    u = run(optkit.cautious_lion(0.1), PARAMS, GRADS)[0]
    base = run(optkit.lion(0.1, b1=0.95, b2=0.98), PARAMS, GRADS)[0]
    for key in PARAMS:
        for ours, theirs, g in zip(u[key], base[key], stacked(GRADS, key), strict=True):
            agree = np.asarray(theirs) * g < 0
            np.testing.assert_allclose(
                ours, theirs * agree * agree.size / (agree.sum() + 1), rtol=1e-5, atol=1e-8
            )


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_cautious_decay_by_either_name(name):
    get = lambda name: optkit.catalogue.get(name).factory  # noqa: E731
    ours = run(get(f"cwd_{name}")(0.1, weight_decay=0.5), PARAMS, GRADS)[1]
    same = run(get(name)(0.1, weight_decay=0.5, decay="cautious"), PARAMS, GRADS)[1]
    full = run(get(name)(0.1, weight_decay=0.5), PARAMS, GRADS)[1]
    chex.assert_trees_all_equal(ours, same)
    assert np.any(np.abs(ours["kernel"] - full["kernel"]) > 1e-3)


MATRICES = {"kernel": True, "bias": False}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "weight_decay": 0.1},
        {"learning_rate": optax.cosine_decay_schedule(0.3, 15), "weight_decay": 0.1},
        {"weight_decay": 0.1, "mask": MATRICES},
        {"weight_decay": 0.1, "mask": lambda p: jax.tree.map(lambda x: x.ndim == 2, p)},
        {"nesterov": True},
    ],
    ids=["default", "rates", "schedule", "mask", "mask function", "nesterov"],
)
def test_adamw_is_that_of_optax(options):
    options = {"learning_rate": 0.1, **options}
    grads = gradients(6, 20, SHAPES)
    ours = run(optkit.adamw(**options), PARAMS, grads)[1]
    # In float32 Optax's 1 - b2**n cancels (1e-5 off at b2 = 0.999): hold against it in float64.
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(np.float64, tree)  # noqa: E731
        theirs = run(optax.adamw(**options), wide(PARAMS), [wide(g) for g in grads])[1]
        theirs = jax.tree.map(np.asarray, theirs)
    for name in PARAMS:
        assert theirs[name].dtype == np.float64
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6, atol=1e-6)
