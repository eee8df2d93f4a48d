"""AltLoRA: what each factor's step is the minimiser of, coordinates, and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit

R, M, N = 2, 5, 4
NAMES = {"a": "A", "b": "B", "layout": "peft"}
seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.5, 1.0, 2.0])
# The gradient's own direction: no momentum, no decay.
BARE = {
    (s, schedule): optkit.altlora(1.0, b1=0.0, delta=0.0, scale=s, schedule=schedule, **NAMES)
    for s in (0.5, 1.0, 2.0)
    for schedule in ("alternate", "simultaneous")
}


@jax.jit
def loss_grad(params, target):
    return jax.grad(lambda p: 0.5 * jnp.sum((p["B"] @ p["A"] - target) ** 2))(params)


def draw(seed, s=1.0):
    """An adapter with singular values of 1 to 2, W's gradient, and those of A and B."""
    rng = np.random.default_rng(seed)

    def factor(rows, columns):
        u, _, v = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
        return (u * np.linspace(1.0, 2.0, min(rows, columns))) @ v

    params = {"A": factor(R, N), "B": factor(M, R)}
    g = rng.standard_normal((M, N))
    return params, g, {"A": s * params["B"].T @ g, "B": s * g @ params["A"].T}


def f32(tree):
    return jax.tree.map(np.float32, tree)


@given(seeds, scales)
def test_a_step_minimises_the_distance_to_the_gradient_over_its_factor(seed, s):
    params, g, grads = draw(seed, s)
    tx = BARE[s, "simultaneous"]
    u, _ = jax.jit(tx.update)(f32(grads), tx.init(f32(params)), f32(params))
    # s B a = G and s b A = G in least squares.
    want_a = np.linalg.lstsq(s * params["B"], g, rcond=None)[0]
    want_b = np.linalg.lstsq(s * params["A"].T, g.T, rcond=None)[0].T
    np.testing.assert_allclose(u["A"], -want_a, atol=2e-5)
    np.testing.assert_allclose(u["B"], -want_b, atol=2e-5)


TX = optkit.altlora(0.05, b1=0.8, delta=0.0, **NAMES)
STEP = jax.jit(TX.update)


def path(params, target, steps):
    """B A after each step of a descent of ``|B A - target|^2 / 2``."""
    state, out = TX.init(params), []
    for _ in range(steps):
        updates, state = STEP(loss_grad(params, target), state, params)
        params = optax.apply_updates(params, updates)
        out.append(np.float64(params["B"] @ params["A"]))
    return out


@given(seeds)
def test_the_path_of_the_product_does_not_depend_on_how_it_is_written(seed):
    params, g, _ = draw(seed)
    mix = np.eye(R) + 0.3 * np.random.default_rng(seed).uniform(-1, 1, (R, R))
    other = {"A": np.linalg.inv(mix) @ params["A"], "B": params["B"] @ mix}
    for got, want in zip(path(f32(other), g, 6), path(f32(params), g, 6), strict=True):
        np.testing.assert_allclose(got, want, atol=2e-4)


def test_factors_take_turns_and_the_gradient_of_the_one_that_rests_does_not_matter():
    params, _, grads = draw(0)
    tx = BARE[1.0, "alternate"]
    params, grads = f32(params), f32(grads)
    state = tx.init(params)
    for time, (moves, rests) in enumerate([("A", "B"), ("B", "A"), ("A", "B")]):
        other = grads | {rests: np.full_like(grads[rests], 7.0)}
        u, after = tx.update(grads, state, params)
        v, _ = tx.update(other, state, params)
        assert np.any(u[moves]) and not np.any(u[rests]), time
        np.testing.assert_array_equal(u[moves], v[moves])
        state = after


@pytest.mark.parametrize("decay", ["decoupled", "after"])
def test_a_joint_step_is_a_step_of_a_and_then_one_of_b_from_the_new_a(decay):
    params, _, grads = draw(1)
    params, grads = f32(params), f32(grads)
    rate, wd = 0.3, 0.5
    tx = optkit.altlora(rate, b1=0.9, schedule="joint", weight_decay=wd, decay=decay, **NAMES)
    u, state = tx.update(grads, tx.init(params), params)
    p, g = ({k: np.float64(x) for k, x in t.items()} for t in (params, grads))
    ridge = 1e-5 * np.eye(R)

    def stepped(x, direction):
        if decay == "after":
            return (1 - rate * wd) * (x - rate * direction)
        return (1 - rate * wd) * x - rate * direction

    a = stepped(p["A"], np.linalg.inv(p["B"].T @ p["B"] + ridge) @ g["A"])
    b = stepped(p["B"], g["B"] @ np.linalg.inv(a @ a.T + ridge))
    np.testing.assert_allclose(params["A"] + u["A"], a, atol=1e-5)
    np.testing.assert_allclose(params["B"] + u["B"], b, atol=1e-5)
    np.testing.assert_allclose(
        np.concatenate(
            [
                x.ravel()
                for x in jax.tree.leaves(jax.tree.map(np.asarray, state.routes["altlora"].old))
            ]
        ),
        np.concatenate([a.ravel(), p["B"].ravel()]),
        atol=1e-5,
    )


def test_a_lost_direction_of_a_factor_rests_where_delta_is_0():
    params = {"A": jnp.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0]]), "B": jnp.zeros((3, 2))}
    grads = {"A": jnp.ones((2, 3)), "B": jnp.ones((3, 2))}
    u, _ = (tx := BARE[1.0, "simultaneous"]).update(grads, tx.init(params), params)
    assert not np.any(u["A"])  # B is 0
    np.testing.assert_allclose(u["B"] @ np.array([2.0, -1.0]), 0.0, atol=1e-6)  # A's null space
    assert np.all(np.isfinite(u["B"])) and np.any(u["B"])


@pytest.mark.parametrize("name", ["altlora", "altlora_plus"])
@pytest.mark.parametrize("schedule", ["alternate", "joint"])
def test_schedules_compile_once_scan_and_go_downhill(name, schedule):
    tx = getattr(optkit, name)(0.02, schedule=schedule, **NAMES)
    params, target, _ = draw(2)
    params = f32(params)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(loss_grad(params, target), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.sum((params["B"] @ params["A"] - target) ** 2)

    losses = jax.jit(lambda c: jax.lax.scan(body, c, length=120)[1])((params, tx.init(params)))
    best = np.sum(np.linalg.svd(target)[1][R:] ** 2)
    assert losses[-1] - best < 0.3 * (losses[0] - best)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_turns_are_the_same_on_eight_devices(kind):
    rng = np.random.default_rng(4)
    shapes = {"lora_a": (8, 2), "lora_b": (2, 8)}
    specs = {"lora_a": P("x", None), "lora_b": P(None, "x")}
    params, grads = (
        {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(2)
    )
    tx = optkit.altlora(0.1)
    state = tx.init(params)
    wanted = []
    for _ in range(2):
        u, state = tx.update(grads, state, params)
        wanted.append(u)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    placed = [
        {k: jax.device_put(v, NamedSharding(mesh, specs[k])) for k, v in t.items()}
        for t in (params, grads)
    ]
    with jax.set_mesh(mesh):
        state, update = tx.init(placed[0]), jax.jit(tx.update)
        for want in wanted:
            u, state = update(placed[1], state, placed[0])
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), u, want)
            held = state.routes["altlora"].mu
            assert all(held[k].sharding.spec == spec for k, spec in specs.items())


def test_the_second_factor_of_a_huge_step_stays_finite():
    params = {"A": jnp.ones((1, 3)), "B": jnp.ones((3, 1))}
    tx = optkit.altlora(0.1, schedule="joint", **NAMES)
    for size in (1e25, 1e30, 0.0):
        grads = jax.tree.map(lambda p, size=size: size * p, params)
        u, _ = tx.update(grads, tx.init(params), params)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(u))
