"""Laws of NorMuon, AdaMuon, AdaGO, AuON and REG."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optax.contrib import MuonDimensionNumbers

import optkit
from optkit.optimizers.adago import AdagoState
from tests.transforms.driver import gradients

SHAPES = {"square": (4, 4), "wide": (3, 7), "tall": (7, 3), "stack": (2, 3, 5)}
MATRICES = ["normuon", "normuon_dion", "adamuon", "adago", "hybrid_auon", "reg"]
TRANSPOSED = MuonDimensionNumbers(1, 0)


@functools.cache
def walk(tx):
    """A compiled run of a transformation; equal calls of a factory give the same one."""

    @jax.jit
    def go(params, grads):
        def step(carry, g):
            params, state = carry
            u, state = tx.update(g, state, params)
            params = optax.apply_updates(params, u)
            return (params, state), (u, params)

        (_, state), out = jax.lax.scan(step, (params, tx.init(params)), grads)
        return *out, state

    return go


def run(tx, params, grads):
    """Updates and parameters after each step, stacked, and the last state."""
    return walk(tx)(params, jax.tree.map(lambda *xs: np.stack(xs), *grads))


def lengths(u):
    return np.linalg.norm(np.asarray(u, np.float64), axis=(-2, -1))


def still(grads):
    return jax.tree.map(np.zeros_like, grads[0])


def built(seed, steps=3, spread=2.0):
    """Gradients whose rows, columns and steps differ in size by powers of ten."""
    rng = np.random.default_rng(seed)
    return [
        {
            name: np.float32(
                10 ** rng.uniform(-spread, spread)
                * rng.standard_normal(shape)
                * 10 ** rng.uniform(-spread, spread, (*shape[:-1], 1))
                * 10 ** rng.uniform(-spread, spread, (*shape[:-2], 1, shape[-1]))
            )
            for name, shape in SHAPES.items()
        }
        for _ in range(steps)
    ]


_NORMUON = {
    "normuon": ("muon", {"nesterov": False, "b1": 0.9}),
    "normuon_dion": ("muon_dion", {"nesterov": True, "b1": 0.9, "weight_decay": 0.0}),
}


@pytest.mark.parametrize("name", _NORMUON)
@given(seed=st.integers(0, 10**6))
def test_normuon_steps_as_far_as_muon_and_first_with_equal_rows(name, seed):
    base, options = _NORMUON[name]
    grads = built(seed, spread=1.0)  # rows far above the eps beside their root
    own = run(optkit.catalogue.get(name).factory(0.1, **options), still(grads), grads)[0]
    muon = run(optkit.catalogue.get(base).factory(0.1, **options), still(grads), grads)[0]
    for leaf in SHAPES:
        np.testing.assert_allclose(lengths(own[leaf]), lengths(muon[leaf]), rtol=1e-4)
        rows = np.linalg.norm(np.asarray(own[leaf][0]), axis=-2)
        np.testing.assert_allclose(rows, rows[..., :1] + 0 * rows, rtol=1e-4)
    assert any(np.any(np.abs(own[leaf] - muon[leaf]) > 1e-3) for leaf in SHAPES)


@given(seed=st.integers(0, 10**6))
@pytest.mark.slow
def test_the_rms_of_a_step_is_that_of_adamw(seed):
    grads = built(seed)
    for tx in (
        optkit.adamuon(0.5, weight_decay=0.0),
        optkit.adamuon(0.5, weight_decay=0.0, sign=False),
        optkit.normuon(0.5, rescale="match_rms"),
        optkit.reg(0.5, weight_decay=0.0),
        optkit.reg(0.5, weight_decay=0.0, order="row_col", exponent=1.0, iterations=2),
    ):
        u = run(tx, still(grads), grads)[0]
        for leaf in SHAPES:
            size = np.sqrt(np.prod(SHAPES[leaf][-2:]))
            np.testing.assert_allclose(lengths(u[leaf]) / size, 0.2 * 0.5, rtol=1e-5)


@pytest.mark.slow
def test_normuon_takes_the_random_sketch_too():
    """Of full rank it is the exact factor; it goes through a link of its own."""
    grads = gradients(9, 3, SHAPES)
    options = {"coefficients": "classic_quintic", "steps": 25}
    exact = run(optkit.normuon(0.1, **options), still(grads), grads)[0]
    links = (
        optkit.momentum(0.95, nesterov=True),
        optkit.orthogonalize("randomized", rank=1.0, **options),
        optkit.scale_by_row_moment(),
        optkit.scale_by_shape(),
    )
    sketched = run(optkit.descend(optax.chain(*links), 0.1), still(grads), grads)[0]
    for leaf in SHAPES:
        np.testing.assert_allclose(sketched[leaf], exact[leaf], atol=2e-4)
    u = run(optkit.normuon(0.1, method="randomized"), still(grads), grads)[0]
    np.testing.assert_allclose(lengths(u["wide"]), lengths(exact["wide"]), rtol=0.5)


def test_adamuon_orthogonalizes_the_signs():
    """The size of entries is no matter."""
    grads = built(1)
    flat = [jax.tree.map(lambda x: np.sign(x) * 7.0, g) for g in grads]
    options = {"weight_decay": 0.0, "b1": 0.0, "nesterov": False}
    left, right = (run(optkit.adamuon(0.1, **options), still(grads), g)[0] for g in (grads, flat))
    for leaf in SHAPES:
        np.testing.assert_allclose(left[leaf], right[leaf], rtol=1e-5)
    plain = run(optkit.adamuon(0.1, sign=False, **options), still(grads), grads)[0]
    assert np.any(np.abs(plain["wide"] - left["wide"]) > 1e-2)


@pytest.mark.parametrize("form", ["code", "paper"])
@given(seed=st.integers(0, 10**6), power=st.floats(-20, 20))
def test_auon_follows_the_momentum(form, seed, power):
    rng = np.random.default_rng(seed)
    grads = [
        {"w": np.float32(rng.standard_normal((3, 4))), "b": np.float32(rng.standard_normal(3))}
        for _ in range(3)
    ]
    scaled = [jax.tree.map(lambda g: np.float32(g * 10.0**power), g) for g in grads]
    tx = optkit.auon(0.1, form=form)
    ahead = run(optkit.descend(optkit.momentum(0.95, nesterov=True), 0.1), still(grads), grads)[0]
    u, again = (run(tx, still(g), g)[0] for g in (grads, scaled))
    for leaf in ahead:
        flat = [np.asarray(x[leaf], np.float64).reshape(3, -1) for x in (u, ahead, again)]
        along = np.sum(flat[0] * flat[1], 1) / np.linalg.norm(flat[0], axis=1)
        np.testing.assert_allclose(along, np.linalg.norm(flat[1], axis=1), rtol=1e-5)
        factor = 10.0**power if form == "code" else 1.0
        np.testing.assert_allclose(flat[2], flat[0] * factor, rtol=1e-4, atol=1e-5 * 0.1 * factor)
        ratio = np.linalg.norm(flat[0], axis=1)
        top = np.linalg.norm(flat[1], axis=1) if form == "code" else 0.1
        gamma = 1.5 if form == "code" else 1.0
        assert np.all(ratio <= top * (1 + 1e-5)) and np.all(ratio * np.cosh(gamma) >= top * 0.9999)


def test_auon_of_large_leaves_is_sgd_with_momentum():
    grads = gradients(3, 4, {"w": (64, 64), "b": (4096,)})
    ours, sgd = (
        run(tx, still(grads), grads)[1]
        for tx in (
            optkit.auon(0.24),
            optkit.descend(optkit.momentum(0.95, nesterov=True), 0.24),
        )
    )
    for leaf in ours:
        gap = np.linalg.norm(np.asarray(ours[leaf] - sgd[leaf])[-1])
        assert gap < 1e-3 * np.linalg.norm(np.asarray(sgd[leaf])[-1])


def test_hybrid_auon_is_muon_without_a_shape_factor_or_one_step_of_it():
    grads = gradients(4, 3, {"w": (96, 48)})
    common = {"weight_decay": 0.1}
    muon = run(optkit.muon(0.1, scale="none", **common), still(grads), grads)[0]["w"]
    hybrid = run(optkit.hybrid_auon(0.1, **common), still(grads), grads)[0]["w"]
    np.testing.assert_allclose(hybrid, muon, atol=1e-3 * float(np.abs(muon).max()))
    one = run(optkit.muon(0.1, scale="none", steps=1, **common), still(grads), grads)[0]["w"]
    paper = run(optkit.hybrid_auon(0.1, form="paper", **common), still(grads), grads)[0]["w"]
    first = np.asarray(one[0]) / np.linalg.norm(np.asarray(one[0]))
    np.testing.assert_allclose(paper[0] / 0.1, first, atol=1e-3 * np.abs(first).max())
    by_hand = optkit.hybrid_auon(0.1, form="paper", steps=5, gamma=0.0, **common)
    u = run(by_hand, still(grads), grads)[0]["w"]
    np.testing.assert_allclose(lengths(u)[0], 0.1, rtol=1e-5)


@pytest.mark.parametrize("name", ["auon", "hybrid_auon"])
def test_without_gradients_auon_decays_and_momentum_goes_on(name):
    params = {"w": np.float32(np.eye(3)), "b": np.ones(3, np.float32)}
    zeros = jax.tree.map(np.zeros_like, params)
    for form in ("code", "paper"):
        tx = optkit.catalogue.get(name).factory(0.1, form=form, weight_decay=0.5)
        _, moved, _ = run(tx, params, [zeros] * 2)
        for leaf, start in params.items():
            np.testing.assert_allclose(moved[leaf][1], start * 0.95**2, rtol=1e-6)
        u = run(optkit.catalogue.get(name).factory(0.1, form=form), params, [params, zeros])[0]
        assert np.all(np.asarray(u["b"][1]) != 0) and np.any(np.asarray(u["w"][1]))


def reg_limit(x):
    for _ in range(60):
        x = x / np.sqrt(np.linalg.norm(x, axis=1, keepdims=True))
        x = x / np.sqrt(np.linalg.norm(x, axis=0, keepdims=True))
    return x / np.sqrt(np.mean(x**2))


@given(st.integers(0, 10**6))
@pytest.mark.slow
def test_reg_forgets_row_and_column_factors_in_the_limit(seed):
    rng = np.random.default_rng(seed)
    x = np.sign(rng.standard_normal((4, 6))) * rng.uniform(0.3, 1.0, (4, 6))
    scaled = 10 ** rng.uniform(-1, 1, (4, 1)) * x * 10 ** rng.uniform(-1, 1, (1, 6))
    tx = optkit.reg(1.0, weight_decay=0.0, iterations=40)
    for g in (x, scaled):
        grads = [{"w": np.float32(g)}]
        u = np.asarray(run(tx, still(grads), grads)[0]["w"][0])
        np.testing.assert_allclose(u, -0.2 * reg_limit(x), atol=2e-5)


def test_reg_improves_the_condition_of_unbalanced_matrices():
    rng = np.random.default_rng(5)
    grads = [
        {f"w{i}": np.float32(10 ** rng.uniform(-1, 1, (8, 1)) * rng.standard_normal((8, 8))
                             * 10 ** rng.uniform(-1, 1, (1, 8))) for i in range(12)}
    ]  # fmt: skip
    u = run(optkit.reg(1.0, weight_decay=0.0), still(grads), grads)[0]
    before = [np.linalg.cond(np.float64(g)) for g in grads[0].values()]
    after = [np.linalg.cond(np.float64(u[name][0])) for name in grads[0]]
    assert np.median(np.array(before) / after) > 3.0
    assert np.mean(np.array(after) < before) > 0.9


def _is_adago(x):
    return isinstance(x, AdagoState)


def adago_steps(grads, rate, gamma, floor, initial):
    """Step sizes of one matrix, float64."""
    v2, out = initial, []
    for g in grads:
        norm = min(np.linalg.norm(np.float64(g)), gamma)
        v2 += norm**2
        out.append(max(floor, rate * norm / np.sqrt(v2)))
    return out


@pytest.mark.parametrize("floor", [5e-4, 0.05])
def test_adago_steps_by_clipped_and_accumulated_norms(floor):
    grads = gradients(6, 8, {"w": (3, 4), "layers/kernel": (2, 3, 4)})
    sizes = (1e-3, 1.0, 0.1, 30.0, 0.0, 1.0, 1e-6, 2.0)
    grads = [
        jax.tree.map(lambda x, s=s: np.float32(s * x), g) for g, s in zip(grads, sizes, strict=True)
    ]
    stack = [g["layers/kernel"] * np.float32([1.0, 0.01]).reshape(2, 1, 1) for g in grads]
    grads = [{"w": g["w"], "layers": {"kernel": x}} for g, x in zip(grads, stack, strict=True)]
    tx = optkit.adago(0.1, gamma=3.0, floor=floor, initial=1e-4, method="svd")
    u, _, state = run(tx, still(grads), grads)
    cases = {
        "w": (u["w"], [g["w"] for g in grads]),
        "first": (u["layers"]["kernel"][:, 0], [g["layers"]["kernel"][0] for g in grads]),
        "second": (u["layers"]["kernel"][:, 1], [g["layers"]["kernel"][1] for g in grads]),
    }
    for name, (got, own) in cases.items():
        top = np.linalg.norm(np.asarray(got), 2, axis=(-2, -1))
        np.testing.assert_allclose(
            top, adago_steps(own, 0.1, 3.0, floor, 1e-4), rtol=1e-4, err_msg=name
        )
    (held,) = [x for x in jax.tree.leaves(state, is_leaf=_is_adago) if _is_adago(x)]
    accumulated = held.accumulated
    assert accumulated["w"].shape == () and accumulated["layers"]["kernel"].shape == (2,)


def test_adago_needs_no_schedule_and_stops_at_a_rate_of_0():
    grads = [{"w": np.float32(np.eye(3))}] * 100
    tops = np.abs(np.asarray(run(optkit.adago(0.1, method="svd"), still(grads), grads)[0]["w"]))
    want = 0.1 / np.sqrt(np.arange(1, 101))
    np.testing.assert_allclose(tops.max(axis=(1, 2)), want, rtol=1e-4)
    assert not np.any(np.asarray(run(optkit.adago(0.0), still(grads), grads[:2])[0]["w"]))
    halves = optax.piecewise_constant_schedule(0.1, {1: 0.0})
    u = np.asarray(run(optkit.adago(halves, method="svd"), still(grads), grads[:3])[0]["w"])
    assert np.any(u[0]) and not np.any(u[1:])


@pytest.mark.sweep
@pytest.mark.parametrize("name", MATRICES)
def test_a_stack_is_its_matrices(name):
    factory = optkit.catalogue.get(name).factory
    singles = {f"m{i}": (3, 5) for i in range(4)}
    params, grads = gradients(4, 1, singles)[0], gradients(5, 4, singles)
    stack = lambda tree: {"m": np.stack([tree[name] for name in singles])}  # noqa: E731
    alone = run(factory(0.1, weight_decay=0.2), params, grads)[1]
    together = run(factory(0.1, weight_decay=0.2), stack(params), [stack(g) for g in grads])[1]["m"]
    for i, leaf in enumerate(singles):
        np.testing.assert_allclose(together[:, i], alone[leaf], atol=2e-5)


@pytest.mark.sweep
@pytest.mark.parametrize("name", MATRICES)
def test_the_other_layout_is_the_transposed_run(name):
    factory = optkit.catalogue.get(name).factory
    shapes = {name: shape for name, shape in SHAPES.items() if len(shape) == 2}
    params, grads = gradients(7, 1, shapes)[0], gradients(8, 4, shapes)
    turn = lambda tree: jax.tree.map(lambda x: np.swapaxes(x, -1, -2), tree)  # noqa: E731
    moved = run(factory(0.1), params, grads)[1]
    turned = run(factory(0.1, dims=TRANSPOSED), turn(params), [turn(g) for g in grads])[1]
    for leaf in shapes:
        np.testing.assert_allclose(turn(turned)[leaf], moved[leaf], atol=2e-5)


@pytest.mark.parametrize("name", MATRICES)
def test_16_bit_parameters_get_float32_statistics(name):
    params = {"w": jnp.ones((3, 4), jnp.bfloat16), "b": jnp.ones(4, jnp.bfloat16)}
    u, moved, state = run(optkit.catalogue.get(name).factory(0.1), params, [params] * 2)
    assert {x.dtype for x in jax.tree.leaves((u, moved))} == {jnp.dtype(jnp.bfloat16)}
    assert jnp.dtype(jnp.bfloat16) not in {x.dtype for x in jax.tree.leaves(state)}


def test_options_that_do_not_go_together_or_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"rescale='none' is not one of 'frobenius', 'match_rms'"):
        optkit.normuon(rescale="none")
    for factory in (optkit.auon, optkit.hybrid_auon):
        with pytest.raises(ValueError, match=r"form='papre' .*did you mean 'paper'"):
            factory(form="papre")
    with pytest.raises(ValueError, match=r"floor=-0\.1 is below 0"):
        optkit.adago(floor=-0.1)
    with pytest.raises(ValueError, match=r"gamma=0.0 is below 1e-30"):
        optkit.adago(gamma=0.0)
