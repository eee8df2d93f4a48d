"""MARS-M and MARS-Shampoo: identities with Muon's, one buffer, exact gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.transforms.driver import gradients, run

SHAPES = {"wide": (3, 7), "tall": (7, 3)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 6, SHAPES)


FEW = settings(max_examples=10, deadline=None)
SEEDS = st.integers(0, 10**6)
SIZES = st.lists(st.floats(0.1, 10.0), min_size=6, max_size=6)


def ending(tx):
    """A compiled function of parameters and gradients: the parameters after the last step."""
    return jax.jit(lambda params, grads: jax.tree.map(lambda x: x[-1], run(tx, params, grads)[1]))


def drawn(seed, sizes=(1.0,) * 6, shapes=SHAPES):
    """Parameters, and as many gradients of these sizes."""
    grads = gradients(seed, len(sizes) + 1, shapes)
    scaled = zip(sizes, grads[1:], strict=True)
    return grads[0], [jax.tree.map(lambda g, s=s: np.float32(s * g), tree) for s, tree in scaled]


def assert_close(one, other, atol=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol), one, other)


TWO = optkit.mars_m(0.1, b1=0.8, gamma=0.1, clip=None)
ONE = optkit.mars_m(0.1, b1=0.8, gamma=0.1, clip=None, one_buffer=True)
END_OF_TWO, END_OF_ONE = ending(TWO), ending(ONE)


@FEW
@given(seed=SEEDS, sizes=SIZES)
def test_one_buffer_computes_the_same(seed, sizes):
    params, grads = drawn(seed, sizes)
    assert_close(END_OF_ONE(params, grads), END_OF_TWO(params, grads))


def test_one_buffer_is_half_the_state():
    size = optkit.tree.tree_bytes(PARAMS)
    got = [sum(r.state_bytes for r in optkit.plan(tx, PARAMS).rows) for tx in (TWO, ONE)]
    assert got == [2 * size, size]


def test_one_buffer_takes_schedules():
    gammas = optax.linear_schedule(0.4, 0.0, 6)
    scheduled = optkit.mars_m(0.1, gamma=gammas, clip=None, one_buffer=True)
    state = scheduled.init(PARAMS)
    assert float(optkit.get_hyperparam(state, "b1")) == pytest.approx(0.6 * 0.95)
    _, state = scheduled.update(GRADS[0], state, PARAMS)
    _, state = scheduled.update(GRADS[1], state, PARAMS)
    assert float(optkit.get_hyperparam(state, "b1")) == pytest.approx((1 - 0.4 * 5 / 6) * 0.95)


OPTIONS = {"b1": 0.8, "weight_decay": 0.2}
PAIRS = {
    "plain": (
        ending(optkit.mars_m(0.1, gamma=0.0, clip=None, **OPTIONS)),
        ending(optkit.muon_rms(0.1, nesterov=False, **OPTIONS)),
    ),
    "nesterov": (
        ending(optkit.mars_m(0.1, gamma=0.2, clip=None, **OPTIONS)),
        ending(optkit.muon_rms(0.1, nesterov=True, **OPTIONS)),
    ),
    "shampoo": (
        ending(optkit.mars_shampoo(0.1, gamma=0.0, clip=None, **OPTIONS)),
        ending(optkit.muon(0.1, nesterov=False, **OPTIONS)),
    ),
}


@pytest.mark.parametrize("pair", PAIRS)
@FEW
@given(seed=SEEDS, sizes=SIZES)
def test_without_correction_and_clip_it_is_moonlights_muon(pair, seed, sizes):
    params, grads = drawn(seed, sizes)
    mars, muon = PAIRS[pair]
    assert_close(mars(params, grads), muon(params, grads))


CLIPPED = ending(optkit.mars_m(0.1, gamma=0.0, weight_decay=0.0))
LOOSE = ending(optkit.mars_m(0.1, gamma=0.0, weight_decay=0.0, clip=None))


@FEW
@given(seed=SEEDS, powers=st.lists(st.floats(1.0, 10.0), min_size=6, max_size=6))
def test_clipping_makes_long_gradients_equal(seed, powers):
    """Above the bound the lengths of the gradients are forgotten; below it they count."""
    params, grads = drawn(seed)
    unit = [jax.tree.map(lambda g: g / np.linalg.norm(g), tree) for tree in grads]
    longer = drawn(seed, [10.0**power for power in powers])[1]
    assert_close(CLIPPED(params, longer), CLIPPED(params, unit))
    uneven = drawn(seed, [1.0, 30.0, 1.0, 1e3, 10.0, 1.0])[1]
    different = LOOSE(params, uneven)["wide"] - LOOSE(params, unit)["wide"]
    assert np.max(np.abs(different)) > 1e-3


NAMES = ["mars_m", "mars_shampoo"]
SINGLES = {f"m{i}": (3, 5) for i in range(3)}
DIMS = MuonDimensionNumbers(1, 0)
WHOLE = {name: ending(optkit.catalogue.get(name).factory(0.1, weight_decay=0.2)) for name in NAMES}
TURNED = {
    name: ending(optkit.catalogue.get(name).factory(0.1, weight_decay=0.2, dims=DIMS))
    for name in NAMES
}


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(seed=SEEDS)
def test_a_stack_is_its_matrices(name, seed):
    params, grads = drawn(seed, (1.0,) * 3, SINGLES)
    grads = [{**g, "m0": 0.01 * g["m0"]} for g in grads]  # not clipped; the others are
    stack = lambda tree: {"m": np.stack([tree[key] for key in SINGLES])}  # noqa: E731
    alone = WHOLE[name](params, grads)
    together = WHOLE[name](stack(params), [stack(g) for g in grads])["m"]
    for i, key in enumerate(SINGLES):
        np.testing.assert_allclose(together[i], alone[key], atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
@FEW
@given(seed=SEEDS, sizes=SIZES)
def test_the_other_layout_is_the_transposed_run(name, seed, sizes):
    params, grads = drawn(seed, sizes)
    turn = lambda tree: jax.tree.map(np.transpose, tree)  # noqa: E731
    turned = TURNED[name](turn(params), list(map(turn, grads)))
    assert_close(turn(turned), WHOLE[name](params, grads))


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
