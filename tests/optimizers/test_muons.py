"""Geometry of the Muon recipes, and the trajectory of Optax's."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from tests.transforms.driver import compiled, gradients, run

SHAPES = {"square": (4, 4), "wide": (3, 7), "tall": (7, 3), "row": (1, 6)}
PARAMS = gradients(1, 1, SHAPES)[0]
GRADS = gradients(2, 5, SHAPES)
TRANSPOSED = MuonDimensionNumbers(1, 0)


SEEDS = st.integers(0, 2**32 - 1)
FEW = settings(max_examples=8)


def muon(**options):
    return compiled(lambda rate, b1, decay: optkit.muon(rate, b1=b1, weight_decay=decay, **options))


MUON = muon()


def turned(seed, shape):
    """A random orthogonal matrix on either side."""
    random = np.random.default_rng(seed)
    return (np.linalg.qr(random.standard_normal((n, n)))[0].astype(np.float32) for n in shape)


@FEW
@given(SEEDS, st.floats(1e-3, 1.0), st.floats(0.0, 0.99), st.integers(-60, 60))
def test_the_spectral_norm_of_a_step_is_bounded_at_every_scale(seed, rate, b1, exponent):
    grads = gradients(seed, 3, SHAPES)
    scaled = jax.tree.map(lambda g: np.float32(2.0**exponent) * g, grads)
    u = MUON(PARAMS, scaled, rate=rate, b1=b1, decay=0.0)[0]
    same = MUON(PARAMS, grads, rate=rate, b1=b1, decay=0.0)[0]
    for name, (fan_in, fan_out) in SHAPES.items():
        bound = rate * np.sqrt(max(1, fan_out / fan_in))
        top = np.linalg.norm(u[name], 2, axis=(-2, -1))
        assert np.all(top <= 1.21 * bound) and np.all(top >= 0.6 * bound), name
        np.testing.assert_allclose(u[name], same[name], rtol=0, atol=2e-5 * bound)


@FEW
@given(SEEDS, st.floats(0.0, 0.99))
def test_rotating_inputs_and_outputs_rotates_the_run(seed, b1):
    """The step of a spectral norm: W + QGR moves to Q(.)R."""
    params, *grads = gradients(seed, 4, SHAPES)
    sides = {name: tuple(turned(seed, shape)) for name, shape in SHAPES.items()}

    def turn(tree):
        return {name: sides[name][0] @ x @ sides[name][1] for name, x in tree.items()}

    numbers = {"rate": 0.1, "b1": b1, "decay": 0.2}
    moved = MUON(params, grads, **numbers)[1]
    chex.assert_trees_all_close(
        MUON(turn(params), [turn(g) for g in grads], **numbers)[1], turn(moved), atol=5e-5
    )


@FEW
@given(SEEDS, st.floats(0.01, 0.5), st.floats(0.0, 0.99), st.floats(0.0, 0.5))
def test_without_gradients_nothing_but_decay_moves(seed, rate, b1, decay):
    params, zeros = gradients(seed, 1, SHAPES)[0], jax.tree.map(np.zeros_like, PARAMS)
    u, moved = MUON(params, [zeros] * 3, rate=rate, b1=b1, decay=decay)[:2]
    for name, start in params.items():
        want = start * (1 - np.float64(rate) * decay) ** np.arange(1, 4)[:, None, None]
        np.testing.assert_allclose(moved[name], want, rtol=1e-6)
        assert decay or not np.any(u[name])


# Of spectra that are not far from flat every method makes nearly the same.
EVEN = {"square": (12, 12), "wide": (6, 18), "tall": (18, 6)}
RMS = {
    method: compiled(
        lambda rate, b1, m=method: optkit.muon_rms(rate, b1=b1, weight_decay=0.0, method=m)
    )
    for method in ("auto", "svd")
}


@FEW
@given(SEEDS, st.floats(0.01, 1.0), st.floats(0.0, 0.99))
def test_muon_rms_has_one_rms_for_every_shape(seed, rate, b1):
    random = np.random.default_rng(seed)
    grads = {}
    for name, (rows, columns) in EVEN.items():
        left, right = turned(seed, (rows, columns))
        values = random.uniform(0.1, 1.0, min(rows, columns))
        grads[name] = np.float32((left[:, : len(values)] * values) @ right[: len(values)])
    zeros = jax.tree.map(np.zeros_like, grads)
    for method, low, high in (("auto", 0.13, 0.25), ("svd", 0.1999, 0.2001)):
        u = RMS[method](zeros, [grads] * 2, rate=rate, b1=b1)[0]
        for name in EVEN:
            # m singular values of 1 in m x n entries
            rms = np.sqrt(np.mean(np.square(u[name]), axis=(-2, -1))) / rate
            assert np.all((low <= rms) & (rms <= high)), (name, rms)


DION = compiled(lambda rate, b1: optkit.muon_dion(rate, b1=b1, weight_decay=0.0, method="svd"))


@FEW
@given(SEEDS, st.floats(0.01, 1.0), st.floats(0.0, 0.99))
def test_muon_dion_has_unit_rms_to_rms_norm(seed, rate, b1):
    u = DION(PARAMS, gradients(seed, 3, SHAPES), rate=rate, b1=b1)[0]
    for name, (fan_in, fan_out) in SHAPES.items():
        top = np.linalg.norm(u[name], 2, axis=(-2, -1))
        np.testing.assert_allclose(top, rate * np.sqrt(fan_out / fan_in), rtol=1e-4)


RECIPES = ["muon", "muon_rms", "muon_dion"]
SINGLES = {f"m{i}": (3, 5) for i in range(4)}


def recipe(name, **options):
    factory = optkit.catalogue.get(name).factory
    return compiled(lambda rate, decay: factory(rate, weight_decay=decay, **options))


STRAIGHT = {name: recipe(name) for name in [*RECIPES, "cautious_muon"]}
TURNED = {name: recipe(name, dims=TRANSPOSED) for name in STRAIGHT}
NUMBERS = {"rate": st.floats(0.01, 0.1), "decay": st.floats(0.0, 0.5)}


@pytest.mark.parametrize("name", RECIPES)
@FEW
@given(seed=SEEDS, **NUMBERS)
def test_a_stack_is_its_matrices(name, seed, rate, decay):
    params, *grads = gradients(seed, 4, SINGLES)
    stack = lambda tree: {"m": np.stack([tree[name] for name in SINGLES])}  # noqa: E731
    numbers = {"rate": rate, "decay": decay}
    alone = STRAIGHT[name](params, grads, **numbers)[1]
    together = STRAIGHT[name](stack(params), [stack(g) for g in grads], **numbers)[1]["m"]
    for i, single in enumerate(SINGLES):
        np.testing.assert_allclose(together[:, i], alone[single], atol=2e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", STRAIGHT)
@FEW
@given(seed=SEEDS, **NUMBERS)
def test_the_other_layout_is_the_transposed_run(name, seed, rate, decay):
    params, *grads = gradients(seed, 4, SHAPES)
    turn = lambda tree: jax.tree.map(lambda x: np.swapaxes(x, -1, -2), tree)  # noqa: E731
    numbers = {"rate": rate, "decay": decay}
    moved = STRAIGHT[name](params, grads, **numbers)[1]
    turned = TURNED[name](turn(params), turn(grads), **numbers)[1]
    chex.assert_trees_all_close(turn(turned), moved, atol=2e-5)
    # muon_rms sees no difference between fan_in and fan_out; the others do.
    wrong = TURNED[name](params, grads, **numbers)[1]
    if name != "muon_rms":
        assert np.any(np.abs(wrong["wide"] - moved["wide"]) > 1e-3)


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
