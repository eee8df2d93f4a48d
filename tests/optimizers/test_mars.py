"""MARS-M and MARS-Shampoo: identities with Muon's, one buffer, exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"wide": (3, 7), "tall": (7, 3)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 6, SHAPES)


def end(tx, params=PARAMS, grads=GRADS):
    return jax.tree.map(lambda x: x[-1], run(tx, params, grads)[1])


def assert_close(one, other, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


def test_one_buffer_computes_the_same_with_half_the_state():
    two = optkit.mars_m(0.1, b1=0.8, gamma=0.1, clip=None)
    one = optkit.mars_m(0.1, b1=0.8, gamma=0.1, clip=None, one_buffer=True)
    assert_close(end(one), end(two))
    size = optkit.tree.tree_bytes(PARAMS)
    got = [sum(r.state_bytes for r in optkit.plan(tx, PARAMS).rows) for tx in (two, one)]
    assert got == [2 * size, size]


def test_one_buffer_takes_schedules():
    gammas = optax.linear_schedule(0.4, 0.0, 6)
    scheduled = optkit.mars_m(0.1, gamma=gammas, clip=None, one_buffer=True)
    state = scheduled.init(PARAMS)
    assert float(optkit.get_hyperparam(state, "b1")) == pytest.approx(0.6 * 0.95)
    _, state = scheduled.update(GRADS[0], state, PARAMS)
    _, state = scheduled.update(GRADS[1], state, PARAMS)
    assert float(optkit.get_hyperparam(state, "b1")) == pytest.approx((1 - 0.4 * 5 / 6) * 0.95)


def test_without_correction_and_clip_it_is_moonlights_muon():
    options = {"b1": 0.8, "weight_decay": 0.2}
    plain = optkit.muon_rms(0.1, nesterov=False, **options)
    assert_close(end(optkit.mars_m(0.1, gamma=0.0, clip=None, **options)), end(plain))
    nesterov = optkit.muon_rms(0.1, nesterov=True, **options)
    assert_close(end(optkit.mars_m(0.1, gamma=0.2, clip=None, **options)), end(nesterov))
    muon = optkit.muon(0.1, nesterov=False, **options)
    assert_close(end(optkit.mars_shampoo(0.1, gamma=0.0, clip=None, **options)), end(muon))


def test_clipping_makes_long_gradients_equal():
    """Above the bound the lengths of the gradients are forgotten; below it they count."""
    sizes = (1e3, 7.0, 1e10, 30.0, 2e4, 50.0)
    longer = [
        jax.tree.map(lambda g, s=s: np.float32(s) * g, t) for s, t in zip(sizes, GRADS, strict=True)
    ]
    tx = optkit.mars_m(0.1, gamma=0.0, weight_decay=0.0)
    unit = [jax.tree.map(lambda g: g / np.linalg.norm(g), tree) for tree in GRADS]
    assert_close(end(tx, PARAMS, longer), end(tx, PARAMS, unit))
    loose = optkit.mars_m(0.1, gamma=0.0, weight_decay=0.0, clip=None)
    different = end(loose, PARAMS, longer)["wide"] - end(loose, PARAMS, unit)["wide"]
    assert np.max(np.abs(different)) > 1e-3


@pytest.mark.parametrize("name", ["mars_m", "mars_shampoo"])
def test_a_stack_is_its_matrices(name):
    tx = optkit.catalogue.get(name).factory(0.1, weight_decay=0.2)
    singles = {f"m{i}": (3, 5) for i in range(3)}
    params, grads = gradients(4, 1, singles)[0], gradients(5, 3, singles)
    grads = [{**g, "m0": 0.01 * g["m0"]} for g in grads]  # not clipped; the others are
    stack = lambda tree: {"m": np.stack([tree[key] for key in singles])}  # noqa: E731
    alone = run(tx, params, grads)[1]
    together = run(tx, stack(params), [stack(g) for g in grads])[1]["m"]
    for i, key in enumerate(singles):
        np.testing.assert_allclose(together[:, i], alone[key], atol=2e-5)


@pytest.mark.parametrize("name", ["mars_m", "mars_shampoo"])
def test_the_other_layout_is_the_transposed_run(name):
    factory = optkit.catalogue.get(name).factory
    turn = lambda tree: jax.tree.map(np.transpose, tree)  # noqa: E731
    moved = end(factory(0.1, weight_decay=0.2))
    dims = MuonDimensionNumbers(1, 0)
    turned = end(factory(0.1, weight_decay=0.2, dims=dims), turn(PARAMS), list(map(turn, GRADS)))
    assert_close(turn(turned), moved)


MODEL = {"up": {"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)}}


def model_gradients(seed, steps):
    rng = np.random.default_rng(seed)
    return [
        jax.tree.map(lambda p: np.float32(rng.standard_normal(p.shape)), MODEL)
        for _ in range(steps)
    ]


def test_exact_gradients_reach_every_leaf_that_corrects_by_them():
    grads, lasts = model_gradients(0, 3), model_gradients(1, 3)
    tx = optkit.mars_shampoo(0.1, exact=True, optimize_1d=True)
    bias = optax.chain(
        optkit.variance_reduce(exact=True), optkit.clip_leaf_norm(),
        optkit.scale_by_adam(0.95, 0.99, 1e-8), optax.scale(-0.1),
    )  # fmt: skip
    state, own = tx.init(MODEL), bias.init(MODEL["up"]["bias"])
    kernels = []
    for g, last in zip(grads, lasts, strict=True):
        u, state = tx.update(g, state, MODEL, prev_grad=last)
        want, own = bias.update(g["up"]["bias"], own, prev_grad=last["up"]["bias"])
        np.testing.assert_allclose(u["up"]["bias"], want, atol=1e-6)
        kernels.append(u["up"]["kernel"])
    other, _ = tx.update(grads[2], state, MODEL, prev_grad=grads[2])
    assert np.max(np.abs(other["up"]["kernel"] - kernels[2])) > 1e-3
    with pytest.raises(ValueError, match="prev_grad"):
        tx.update(grads[0], state, MODEL)


def test_the_other_leaves():
    g = model_gradients(2, 1)

    def bias(tx):
        return run(tx, MODEL, g)[1]["up"]["bias"][0]

    sign = np.sign(g[0]["up"]["bias"])
    np.testing.assert_allclose(bias(optkit.mars_shampoo(0.1)), 1 - 0.01 - 0.1 * sign, rtol=1e-4)
    own = optkit.mars_shampoo(0.1, adam_learning_rate=0.5, adam_weight_decay=0.0)
    np.testing.assert_allclose(bias(own), 1 - 0.5 * sign, rtol=1e-4)
    mars = optkit.mars_shampoo(0.1, optimize_1d=True, weight_decay=0.3)
    np.testing.assert_allclose(bias(mars), 1 - 0.03 - 0.1 * sign, rtol=1e-4)
    shared = optkit.mars_m(0.1, weight_decay=0.3)
    np.testing.assert_allclose(bias(shared), 1 - 0.03 - 0.1 * sign, rtol=1e-4)


def test_options_that_exclude_each_other():
    for options in ({}, {"clip": None, "exact": True}):
        with pytest.raises(ValueError, match="one_buffer=True cannot keep clip="):
            optkit.mars_m(0.1, one_buffer=True, **options)
    with pytest.raises(ValueError, match=r"gamma=1\.5"):
        optkit.mars_m(0.1, gamma=1.5, clip=None, one_buffer=True)
    for options in ({"other": optax.sgd(0.1)}, {"adam_learning_rate": 0.1}):
        with pytest.raises(ValueError, match="optimize_1d=True trains the other leaves"):
            optkit.mars_shampoo(0.1, optimize_1d=True, **options)
