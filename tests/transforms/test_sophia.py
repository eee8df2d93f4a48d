"""Sophia: bounds of steps, when curvature is refreshed, and that other steps do not pay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import curvature
from tests.transforms.driver import gradients

SHAPES = {"w": (3, 4), "b": (5,)}
SEEDS = st.integers(0, 2**32 - 1)
BOUNDED = optkit.sophia_g(0.1, every=1, first=0, weight_decay=0.5)
BOUNDED_STEP = jax.jit(BOUNDED.update)


@given(
    seed=SEEDS, size=st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e25]), sign=st.sampled_from([1, -1])
)
def test_no_entry_moves_further_than_the_learning_rate(seed, size, sign):
    g, p, h = gradients(seed, 3, SHAPES)
    g, h = ({k: np.float32(s * x) for k, x in t.items()} for s, t in ((size, g), (sign * 9, h)))
    u, _ = BOUNDED_STEP(g, BOUNDED.init(p), p, curvature=h)
    for name in SHAPES:
        moved = np.float64(u[name]) + 0.1 * 0.5 * p[name]
        assert np.all(np.abs(moved) <= 0.1 * (1 + 1e-5))
        assert np.all(moved * g[name] <= 1e-7)  # never uphill, be the curvature negative


def test_without_curvature_it_is_the_sign_of_a_momentum():
    tx = optkit.sophia_g(0.1, b1=0.9, weight_decay=0.0)
    grads = gradients(0, 4, SHAPES)
    state, m = tx.init(grads[0]), {k: np.zeros(s) for k, s in SHAPES.items()}
    for g in grads:
        u, state = tx.update(g, state, g, curvature=curvature.constant(5.0))
        m = {k: 0.9 * m[k] + 0.1 * g[k] for k in m}
        for k in m:
            np.testing.assert_allclose(u[k], -0.1 * np.sign(m[k]), rtol=1e-6)


def test_infinite_curvature_stops_all_movement():
    (g,) = gradients(0, 1, SHAPES)
    h = jax.tree.map(lambda x: np.full_like(x, 1e30), g)
    for recipe in (optkit.sophia_g, optkit.sophia_h):
        tx = recipe(0.1, every=1, first=0, weight_decay=0.0)
        state = tx.init(g)
        for _ in range(2):
            u, state = tx.update(g, state, g, curvature=h)
        assert max(np.max(np.abs(x)) for x in u.values()) < 1e-25


def test_exact_curvature_of_a_diagonal_quadratic_is_a_newton_step():
    scale, target = jnp.array([0.5, 2.0, 30.0]), jnp.array([1.0, -2.0, 0.3])

    def loss(p):
        return jnp.sum(scale * (p - target) ** 2) / 2

    gamma, p = 0.25, jnp.zeros(3)
    part = optkit.scale_by_sophia(
        0.0,
        0.0,
        gamma=gamma,
        clip=None,
        every=1,
        refresh="before",
        curvature=curvature.hutchinson(loss),
    )
    tx = optkit.descend(part, gamma)
    u, _ = tx.update(jax.grad(loss)(p), tx.init(p), p)
    np.testing.assert_allclose(p + u, target, rtol=1e-6)


def number_of_call(params, key):
    """An estimate that leaves a trace of its parameters."""
    del key
    return jax.tree.map(jnp.ones_like, params)


@pytest.mark.parametrize(
    ("options", "first", "acts"),
    [
        ({"refresh": "after"}, 0, 1),  # Optax
        ({"refresh": "after", "first": 2}, 2, 3),  # levanter
        ({"refresh": "before", "first": 3}, 3, 3),  # the authors' code
        ({"refresh": "before"}, 0, 0),  # the paper
    ],
)
def test_when_it_refreshes_and_from_when_that_acts(options, first, acts):
    calls, h = [], []

    def estimate(params, key):
        calls.append((len(h), jax.random.key_data(key).tolist()))
        return {"w": jnp.full(2, 4.0)}

    tx = optkit.scale_by_sophia(0.0, 0.5, gamma=1.0, every=3, clip=None, eps=1.0, **options)
    params = {"w": jnp.zeros(2)}
    state, g = tx.init(params), {"w": jnp.ones(2)}
    for _ in range(8):
        u, state = tx.update(g, state, params, curvature=estimate)
        h.append(float(1 / u["w"][0]))
    assert [at for at, _ in calls] == [t for t in range(8) if t >= first and (t - first) % 3 == 0]
    assert len({tuple(key) for _, key in calls}) == len(calls)  # each has a key of its own
    want = [1.0] * 8
    for t in range(8):
        done = len([at for at, _ in calls if at + acts - first <= t])
        want[t] = max(1.0, 4.0 * (1 - 0.5**done))
    np.testing.assert_allclose(h, want, rtol=1e-6)


def equations(jaxpr, inside=False):
    """(primitive, whether it is inside of a branch) of all equations."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, inside or eqn.primitive.name == "cond")


@pytest.mark.parametrize("recipe", [optkit.sophia_g, optkit.sophia_h])
def test_an_estimate_is_computed_inside_of_a_branch_only(recipe):
    tx, params = recipe(0.1), {"w": jnp.ones((3, 3))}
    estimate = curvature.gauss_newton_bartlett(lambda p: jnp.eye(3) @ p["w"])

    def step(g, state, params):
        return tx.update(g, state, params, curvature=estimate)

    program = jax.make_jaxpr(step)(params, tx.init(params), params)
    where = [inside for name, inside in equations(program.jaxpr) if name == "dot_general"]
    assert where and all(where)


def test_compiled_steps_without_refresh_run_none_of_the_estimate():
    """A callback inside of the estimate counts how often it runs; one program serves all steps."""
    runs, traces = [], []

    def estimate(params, key):
        jax.debug.callback(lambda: runs.append(1))
        return number_of_call(params, key)

    tx, params = optkit.sophia_h(0.1, every=4), {"w": jnp.ones(3)}

    @jax.jit
    def step(state, params):
        traces.append(1)
        u, state = tx.update(params, state, params, curvature=estimate)
        return state, optax.apply_updates(params, u)

    state = tx.init(params)
    for _ in range(9):
        state, params = step(state, params)
    jax.effects_barrier()
    assert (len(runs), len(traces)) == (3, 1)


def test_estimates_that_are_not_finite_leave_the_average():
    tx = optkit.scale_by_sophia(0.0, 0.0, gamma=1.0, every=1)
    params, h = {"w": jnp.zeros(3)}, {"w": jnp.array([2.0, 3.0, 4.0])}
    _, state = tx.update(params, tx.init(params), params, curvature=h)
    bad = {"w": jnp.array([jnp.nan, 5.0, jnp.inf])}
    _, state = tx.update(params, state, params, curvature=bad)
    np.testing.assert_array_equal(state.curvature["w"], [2.0, 5.0, 4.0])


@given(seed=SEEDS)
def test_the_win_rate_is_the_share_of_entries_that_are_not_clipped(seed):
    g, h = gradients(seed, 2, SHAPES)
    tx = optkit.sophia_g(0.1, b1=0.0, rho=0.5, every=1, first=0, b2=0.0, monitor=True)
    _, state = tx.update(g, tx.init(g), g, curvature=h)
    inside = [np.abs(g[k]) < 0.5 * np.maximum(h[k], 0) for k in SHAPES]
    want = np.mean(np.concatenate([np.ravel(x) for x in inside]))
    np.testing.assert_allclose(optax.tree.get(state, "win_rate"), want, rtol=1e-6)


def test_value_fn_stands_in_for_an_estimate():
    (p,) = gradients(0, 1, SHAPES)

    def loss(p):
        return sum(jnp.sum(x**4) for x in jax.tree.leaves(p)) / 12

    tx = optkit.sophia_h(0.1, b2=0.0)
    _, state = tx.update(p, tx.init(p), p, value_fn=loss)
    for name, x in p.items():
        held = optax.tree.get(state, "curvature")[name]
        np.testing.assert_allclose(held, np.float64(x) ** 2, rtol=1e-5)


def test_logits_come_before_a_loss_in_sophia_g_alone():
    params, x = {"w": jnp.ones((3, 4)) * jnp.arange(4.0)[None]}, jnp.eye(3)

    def logits(p):
        return x @ p["w"]

    def loss(p):
        return jnp.sum(p["w"] ** 2)

    def held(tx, **extras):
        _, state = tx.update(params, tx.init(params), params, **extras)
        return np.asarray(optax.tree.get(state, "curvature")["w"])

    tx = optkit.sophia_g(0.1, every=1, first=0, b2=0.0)
    estimate = curvature.gauss_newton_bartlett(logits)
    want = held(tx, curvature=estimate)
    np.testing.assert_array_equal(held(tx, logits_fn=logits, value_fn=loss), want)
    assert want.std() > 0
    np.testing.assert_allclose(held(tx, value_fn=loss), 2.0, rtol=1e-6)
    np.testing.assert_array_equal(held(tx, curvature=curvature.constant(), logits_fn=logits), 1.0)
    own = optkit.sophia_g(0.1, every=1, first=0, b2=0.0, curvature=curvature.constant(3.0))
    np.testing.assert_array_equal(held(own, logits_fn=logits), 3.0)
    tx = optkit.sophia_h(0.1, every=1, first=0, b2=0.0)
    np.testing.assert_allclose(held(tx, logits_fn=logits, value_fn=loss), 2.0, rtol=1e-6)


def test_routes_bind_the_whole_model():
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones((2, 4))}
    inner = optkit.scale_by_sophia(0.0, 0.0, every=1)
    tx = optkit.route({"sophia": inner, "sgd": optax.sgd(1.0)}, [("w", "sophia"), ("**", "sgd")])
    estimate = curvature.gauss_newton_bartlett(lambda p: jnp.eye(3) @ p["w"] @ p["v"])
    bound = curvature.at(estimate, params)
    _, state = tx.update(params, tx.init(params), params, curvature=bound)
    assert optax.tree.get(state, "curvature")["w"].shape == (3, 2)


def product(p):
    return jnp.sum((p["w"] @ p["v"]) ** 4)


WHOLE = {"w": jnp.arange(6.0).reshape(3, 2) / 6, "v": jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)}
GRADIENT = jax.grad(product)(WHOLE)


def of_w(p):
    return product({**WHOLE, **p})


@pytest.mark.parametrize("recipe", [optkit.sophia_h, optkit.oasis])
def test_a_route_computes_with_all_parameters(recipe):
    tx, own = recipe(0.1), {"w": WHOLE["w"]}
    want, _ = tx.update({"w": GRADIENT["w"]}, tx.init(own), own, value_fn=of_w)
    tx = optkit.freeze("v", tx)
    u, _ = tx.update(GRADIENT, tx.init(WHOLE), WHOLE, value_fn=product)
    np.testing.assert_allclose(u["w"], want["w"], rtol=1e-5)
    assert not jnp.any(u["v"])
    functions = {"curvature": curvature.hutchinson(product), "prev_grad": jax.grad(product)}
    u, _ = tx.update(GRADIENT, tx.init(WHOLE), WHOLE, **functions)
    assert jnp.any(u["w"]) and not jnp.any(u["v"])


def test_a_mask_that_hides_parameters_is_told():
    tx = optax.masked(optkit.sophia_h(0.1), {"w": True, "v": False})
    with pytest.raises(TypeError, match=r"a mask hides the others.*optkit\.curvature\.at"):
        tx.update(GRADIENT, tx.init(WHOLE), WHOLE, value_fn=product)
    bound = curvature.at(curvature.hutchinson(product), WHOLE)
    u, _ = tx.update(GRADIENT, tx.init(WHOLE), WHOLE, curvature=bound)
    assert jnp.all(jnp.isfinite(u["w"]))


def test_nnx_and_accumulation_hand_estimates_on():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    graph, _ = nnx.split(model)
    x = jnp.ones((4, 2))
    estimate = curvature.gauss_newton_bartlett(lambda p: nnx.merge(graph, p)(x))
    tx = optkit.accumulate_gradients(optkit.sophia_g(0.1, every=1, first=0), 2)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model)
        optimizer.update(model, grads, curvature=estimate)

    before = model.kernel[...]
    for _ in range(2):
        step(model, optimizer)
    assert np.any(before != model.kernel[...])


def test_what_is_missing_or_does_not_fit_is_told():
    params = {"w": jnp.ones(2)}
    for tx in (optkit.sophia_g(), optkit.sophia_h()):
        with pytest.raises(ValueError, match="gauss_newton_bartlett"):
            tx.update(params, tx.init(params), params)
        with pytest.raises(ValueError, match="w: in the updates, not in the curvature"):
            tx.update(params, tx.init(params), params, curvature={"v": jnp.ones(2)})
        with pytest.raises(ValueError, match="give curvature= a tree like the parameters"):
            tx.update(params, tx.init(params), params, curvature=2.0)
        with pytest.raises(TypeError, match=r"make one with optkit\.curvature\.hutchinson"):
            tx.update(params, tx.init(params), params, curvature=lambda p: jnp.sum(p["w"]))
    tx = optkit.sophia_h()
    with pytest.raises(ValueError, match=r"shape \(2,\) in the updates, \(3,\) in the curvature"):
        tx.update(params, tx.init(params), params, curvature=lambda p, key: {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match="refresh='often' is not one of"):
        optkit.scale_by_sophia(refresh="often")
