"""Geometry of the Muon recipes, and the trajectory of Optax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"square": (4, 4), "wide": (3, 7), "tall": (7, 3), "row": (1, 6)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 5, SHAPES)
TRANSPOSED = MuonDimensionNumbers(1, 0)


def test_the_spectral_norm_of_a_step_is_bounded():
    u = run(optkit.muon(0.1), PARAMS, GRADS)[0]
    for name, (fan_in, fan_out) in SHAPES.items():
        top = np.linalg.norm(np.asarray(u[name]), 2, axis=(-2, -1))
        bound = 0.1 * np.sqrt(max(1, fan_out / fan_in))
        assert np.all(top <= 1.21 * bound) and np.all(top >= 0.6 * bound), name


def test_muon_rms_has_one_rms_for_every_shape():
    shapes = {"square": (24, 24), "wide": (6, 40), "tall": (40, 6)}
    grads = gradients(3, 1, shapes)
    for method, low, high in (("auto", 0.13, 0.25), ("svd", 0.1999, 0.2001)):
        tx = optkit.muon_rms(0.5, weight_decay=0.0, method=method)
        u = run(tx, jax.tree.map(np.zeros_like, grads[0]), grads)[0]
        for name, (rows, columns) in shapes.items():
            # m singular values of 1 in m x n entries
            rms = np.sqrt(np.mean(np.square(np.asarray(u[name][0])))) / 0.5
            assert low <= rms <= high, (name, rms, rows, columns)


def test_muon_dion_has_unit_rms_to_rms_norm():
    tx = optkit.muon_dion(1.0, weight_decay=0.0, method="svd")
    u = run(tx, PARAMS, GRADS)[0]
    for name, (fan_in, fan_out) in SHAPES.items():
        top = np.linalg.norm(np.asarray(u[name]), 2, axis=(-2, -1))
        np.testing.assert_allclose(top, np.sqrt(fan_out / fan_in), rtol=1e-4)


RECIPES = ["muon", "muon_rms", "muon_dion"]


@pytest.mark.parametrize("name", RECIPES)
def test_a_stack_is_its_matrices(name):
    tx = optkit.catalogue.get(name).factory(0.1, weight_decay=0.2)
    singles = {f"m{i}": (3, 5) for i in range(4)}
    params, grads = gradients(4, 1, singles)[0], gradients(5, 4, singles)
    stack = lambda tree: {"m": np.stack([tree[name] for name in singles])}  # noqa: E731
    alone = run(tx, params, grads)[1]
    together = run(tx, stack(params), [stack(g) for g in grads])[1]["m"]
    for i, name in enumerate(singles):
        np.testing.assert_allclose(together[:, i], alone[name], atol=2e-5)


@pytest.mark.parametrize("name", [*RECIPES, "cautious_muon"])
def test_the_other_layout_is_the_transposed_run(name):
    factory = optkit.catalogue.get(name).factory
    turn = lambda tree: jax.tree.map(lambda x: np.swapaxes(x, -1, -2), tree)  # noqa: E731
    moved = run(factory(0.1, weight_decay=0.2), PARAMS, GRADS)[1]
    turned = run(factory(0.1, weight_decay=0.2, dims=TRANSPOSED), turn(PARAMS), turn(GRADS))[1]
    chex.assert_trees_all_close(turn(turned), moved, atol=2e-5)
    wrong = run(factory(0.1, weight_decay=0.2), turn(PARAMS), turn(GRADS))[1]
    # cautious_muon and the others see the shape through fan_out/fan_in; muon_rms does not.
    if name != "muon_rms":
        assert np.any(np.abs(turn(wrong)["wide"] - moved["wide"]) > 1e-3)


MODEL = {
    "embed": {"embedding": (5, 4)},
    "block": {
        "up": {"kernel": (2, 4, 6), "bias": (2, 6)},
        "attn": {"query": {"kernel": (4, 2, 3)}},
    },
    "lm_head": {"kernel": (4, 5)},
}


def model(seed, steps):
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return [
        jax.tree.map(lambda s: rng.standard_normal(s).astype(np.float32), MODEL, is_leaf=is_shape)
        for _ in range(steps)
    ]


DIMS = {
    "embed": {"embedding": None},
    "block": {
        "up": {"kernel": MuonDimensionNumbers(1, 2), "bias": None},
        "attn": {"query": {"kernel": MuonDimensionNumbers(0, (1, 2))}},
    },
    "lm_head": {"kernel": None},
}


@pytest.mark.parametrize("by_role", [False, True], ids=["same dims", "roles"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_that_of_optax(nesterov, by_role):
    params, grads = model(0, 1)[0], model(1, 8)
    schedule = optax.linear_schedule(0.1, 0.02, 8)
    theirs = optax.contrib.muon(
        schedule, nesterov=nesterov, weight_decay=0.1, weight_decay_mask=None,
        muon_weight_dimension_numbers=DIMS, adam_weight_decay=0.05,
    )  # fmt: skip
    ours = optkit.muon(
        schedule, debias=True, nesterov=nesterov, weight_decay=0.1, eps=1e-8, method="ns",
        dims=None if by_role else DIMS,
        other=optkit.adamw(schedule, b2=0.999, eps=1e-8, weight_decay=0.05, nesterov=nesterov),
    )  # fmt: skip
    chex.assert_trees_all_close(
        run(ours, params, grads)[1], run(theirs, params, grads)[1], rtol=1e-4, atol=3e-5
    )


def test_matrices_and_the_rest_have_their_own_rates_and_decay():
    params = jax.tree.map(np.ones_like, model(0, 1)[0])
    zeros = [jax.tree.map(np.zeros_like, params)]
    tx = optkit.muon(0.1, weight_decay=0.5, mask=("re:up",), adam_learning_rate=9.0)
    moved = run(tx, params, zeros)[1]
    assert float(moved["block"]["up"]["kernel"].min()) == pytest.approx(0.95)
    assert float(moved["block"]["attn"]["query"]["kernel"].min()) == 1.0
    assert float(moved["embed"]["embedding"].min()) == 1.0
    tx = optkit.cautious_muon(0.1, weight_decay=0.5, adam_learning_rate=0.2, adam_weight_decay=1.0)
    moved = run(tx, params, zeros)[1]
    assert float(moved["block"]["up"]["kernel"].min()) == pytest.approx(0.95)
    assert float(moved["embed"]["embedding"].min()) == pytest.approx(0.8)


def test_16_bit_parameters_get_float32_momentum_and_keep_their_dtype():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), PARAMS)
    u, moved, state = run(optkit.muon(0.1), params, [params] * 2)
    assert {x.dtype for x in jax.tree.leaves((u, moved))} == {jnp.dtype(jnp.bfloat16)}
    momenta = jax.tree.leaves(state.routes["muon"][0][0].momentum)
    assert len(momenta) == 4 and all(x.dtype == jnp.float32 for x in momenta)
