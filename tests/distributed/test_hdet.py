"""HDET: meetings, spreads, what losses ask for, and one computation in all forms of execution."""

import functools
from typing import Any

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
from optkit.distributed.exploring import preferred, spread, steered
from optkit.distributed.replicas import meeting

PARAMS = {
    "b": np.array([0.0, 0.5, -1.0], np.float32),
    "w": np.linspace(-1, 1, 12, dtype=np.float32),
}
Tree = Any


def draws(seed: int, steps: int, replicas: int) -> list[Tree]:
    random = np.random.default_rng(seed)
    shapes = jax.tree.map(lambda p: (replicas, *p.shape), PARAMS)
    return [
        {k: np.float32(random.standard_normal(s)) for k, s in shapes.items()} for _ in range(steps)
    ]


def heavy_ball(rate: Any) -> Any:
    return optax.sgd(rate, 0.9)


def decayed(rate: Any, weight_decay: Any) -> Any:
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate))


def follow(
    tx: Any, grads: list[Tree], losses: Any = None, mesh: Any = None, noise: float = 0.0
) -> list[Any]:
    """Returns parameters and states of all replicas after each step."""
    replicas = len(jax.tree.leaves(grads[0])[0])

    def step(g: Tree, loss: jax.Array, state: Tree, p: Tree) -> Any:
        updates, state = tx.update(g, state, p, loss=loss)
        return state, optax.apply_updates(p, updates)

    run = jax.jit(optkit.on_replicas(step, mesh=mesh))
    params = optkit.replicas(PARAMS, replicas, noise=noise)
    state, out = optkit.on_replicas(tx.init, mesh=mesh)(params), []
    for t, g in enumerate(grads):
        loss = np.zeros(replicas, np.float32) if losses is None else np.float32(losses[t])
        state, params = run(g, loss, state, params)
        out.append(jax.device_get((params, state._replace(key=None))))
    return out


def own(state: Any, name: str = "learning_rate") -> np.ndarray:
    return np.asarray(state.values[name].own)


@given(st.integers(1, 9), st.floats(0.0, 1.0))
def test_a_spread_is_even_has_mean_1_and_its_width(replicas: int, alpha: float) -> None:
    rho = np.asarray(spread(alpha, jnp.arange(replicas), replicas), np.float64)
    assert rho.sum() == pytest.approx(replicas, rel=1e-6)
    np.testing.assert_allclose(rho + rho[::-1], 2.0, rtol=1e-6)
    if replicas > 1:
        np.testing.assert_allclose(rho[[0, -1]], [1 - alpha, 1 + alpha], atol=1e-6)


@given(st.permutations(range(5)), st.floats(0.05, 5.0), st.floats(-3.0, 3.0))
def test_delta_has_the_sign_of_what_wins(order: list[int], sigma: float, shift: float) -> None:
    values = 0.1 * np.float32(1.0 + np.array(order) / 10)
    assert abs(preferred(jnp.full(5, shift), jnp.asarray(values), sigma)) < 1e-7
    better = shift - np.float32(values)  # lower losses at higher values
    for sign in (1, -1):
        delta = float(preferred(jnp.asarray(sign * better), jnp.asarray(values), sigma))
        weights = np.exp(-np.float64(sign * better) / sigma)
        want = weights @ values / weights.sum() - values.mean()
        assert sign * delta > 0.0
        assert delta == pytest.approx(want, rel=1e-3, abs=1e-7)


def test_a_loss_that_is_not_finite_weighs_nothing() -> None:
    values = jnp.array([1.0, 2.0, 3.0])
    with_it = preferred(jnp.array([1.0, jnp.nan, 1.0]), values, 0.1)
    assert float(with_it) == pytest.approx(0.0, abs=1e-6)
    assert float(preferred(jnp.array([1.0, 1.0, jnp.inf]), values, 0.1)) == pytest.approx(-0.5)
    assert float(preferred(jnp.full(3, jnp.nan), values, 0.1)) == pytest.approx(0.0, abs=1e-6)


def test_with_equal_losses_a_base_falls_by_shrink() -> None:
    auto = optkit.AutoRate(total_steps=44, shrink=20.0, start_step=4)
    base, velocity = jnp.float32(0.3), jnp.zeros(())
    for _ in range(10):
        values = base * spread(0.2, jnp.arange(4), 4)
        base, velocity = steered(values, jnp.ones(4), velocity, auto, auto.decay(4))
    assert float(base) == pytest.approx(0.3 / 20, rel=1e-4)
    assert auto.first(3) == 6 and auto.first(4) == 4 and optkit.AutoRate(9, 2.0).first(4) == 4


@jax.jit
def _lead(p: Any, u: Any) -> Any:
    return jax.vmap(lambda p, u: p + meeting(p, u, "replica"), axis_name="replica")(p, u)


@given(st.integers(0, 2**31), st.sampled_from([1e-20, 1e-3, 1.0, 1e20]), st.floats(0.0, 0.3))
def test_replicas_meet_bit_for_bit_where_signs_stay(seed: int, scale: float, width: float) -> None:
    random: Any = np.random.default_rng(seed)
    start = scale * random.standard_normal(200) * 2.0 ** random.integers(-9, 1, 200)
    own = np.float32(start * (1.0 + width * random.standard_normal((4, 200))))
    steps = np.float32(0.3 * start * random.standard_normal((4, 200)))
    ends = np.asarray(_lead(own, steps))
    target = (np.float64(own) + steps).mean(0)
    top = np.maximum(np.abs(own).max(0), np.abs(target))
    assert np.all(np.abs(ends - target) <= 3e-7 * top)
    same = np.all(np.sign(own) == np.sign(target), axis=0)
    assert np.all(ends[:, same] == ends[:1, same])
    assert np.mean(np.any(ends != ends[:1], axis=0)) < 0.05


def test_replicas_differ_between_meetings_and_moments_never() -> None:
    tx = optkit.hdet(heavy_ball, 0.01, axis_name="replica", alpha=0.5, every=3)
    runs = follow(tx, draws(0, 6, 4), noise=0.01)
    for t, (params, state) in enumerate(runs, 1):
        apart = [float(np.abs(p - p[:1]).max()) for p in params.values()]
        assert (max(apart) == 0.0) == (t % 3 == 0), (t, apart)
        for leaf in jax.tree.leaves(state.inner):
            if leaf.ndim > 1:
                assert np.all(leaf == leaf[:1])
        np.testing.assert_allclose(own(state) / 0.01, [0.5, 5 / 6, 7 / 6, 1.5], rtol=1e-6)


def test_without_a_spread_it_is_plain_data_parallelism() -> None:
    grads = draws(1, 4, 3)
    runs = follow(optkit.hdet(heavy_ball, 0.1, axis_name="replica", alpha=0.0, every=2), grads)
    plain, params = heavy_ball(0.1), PARAMS
    state = plain.init(params)
    for g, (got, _) in zip(grads, runs, strict=True):
        updates, state = plain.update(jax.tree.map(lambda x: x.mean(0), g), state, params)
        params = optax.apply_updates(params, updates)
        for name, want in params.items():
            np.testing.assert_allclose(got[name], np.stack([want] * 3), atol=1e-5)


def test_sgd_that_meets_at_every_step_has_the_mean_rate() -> None:
    grads, at = draws(2, 3, 4), jax.tree.map(np.float64, PARAMS)
    runs = follow(optkit.hdet(optax.sgd, 0.1, axis_name="replica", alpha=0.7, every=1), grads)
    for g, (got, _) in zip(grads, runs, strict=True):
        at = {k: at[k] - 0.1 * g[k].mean(0) for k in at}
        for name, want in at.items():
            assert np.all(got[name] == got[name][:1])
            np.testing.assert_allclose(got[name][0], want, atol=1e-6)


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_rates_go_where_losses_are_lower(direction: float) -> None:
    """Each replica's loss is read off its rate: the base leaves its schedule that way."""
    auto = optkit.AutoRate(12, 1.0, start_step=2, momentum=0.0, gain=1.0, loss_scale=0.01)
    tx = optkit.hdet(optax.sgd, 0.1, axis_name="replica", alpha=0.2, every=2, auto=auto, key=3)
    update = jax.jit(optkit.on_replicas(lambda s, x: tx.update(x, s, x, loss=_loss(s))[1]))

    def _loss(state: Any) -> jax.Array:
        return -direction * optkit.hdet_value(state)

    at = optkit.replicas(jnp.zeros(2), 4)
    state, bases, orders = optkit.on_replicas(tx.init)(at), [], []
    for _ in range(8):
        state = update(state, at)
        bases.append(float(state.values["learning_rate"].base[0]))
        orders.append(tuple(np.asarray(state.values["learning_rate"].order)))
    assert bases[0] == pytest.approx(0.1)
    assert np.all(direction * np.diff(bases[::2]) > 0.0)
    assert bases[1::2][:3] == pytest.approx(bases[2::2])  # constant until the next meeting
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders) and len({*orders}) > 2


def test_several_scalars_have_permutations_of_their_own() -> None:
    auto = optkit.AutoRate(20, 10.0)
    tx = optkit.hdet(
        decayed,
        0.1,
        axis_name="replica",
        every=1,
        auto=auto,
        explore={"weight_decay": optkit.Spread(0.2, alpha=0.5)},
        outside={"dropout": optax.linear_schedule(0.3, 0.1, 2)},
    )
    runs = follow(tx, draws(3, 3, 8), losses=np.zeros((3, 8)))
    for t, (_, state) in enumerate(runs, 1):
        ranks = [np.argsort(own(state, name)) for name in state.values]
        assert len({tuple(rank) for rank in ranks}) == 3
        fall = 10.0 ** (-t / 20)
        assert own(state).mean() == pytest.approx(0.1 * fall, rel=1e-5)
        assert own(state, "weight_decay").mean() == pytest.approx(0.2, rel=1e-5)
        assert own(state, "weight_decay").max() == pytest.approx(0.3, rel=1e-5)
    assert own(runs[0][1], "dropout").mean() == pytest.approx(0.3, rel=1e-5)


def test_a_scalar_reaches_the_update_of_its_replica() -> None:
    tx = optkit.hdet(
        lambda weight_decay: decayed(0.1, weight_decay),
        explore={"weight_decay": optkit.Spread(0.2, alpha=1.0)},
        axis_name="replica",
    )
    grads = draws(4, 1, 3)
    ((got, _),) = follow(tx, grads)
    start = optkit.on_replicas(tx.init)(optkit.replicas(PARAMS, 3))
    mean = jax.tree.map(lambda x: x.mean(0), grads[0])
    for r, decay in enumerate(own(start, "weight_decay")):
        plain = decayed(0.1, float(decay))
        updates, _ = plain.update(mean, plain.init(PARAMS), PARAMS)
        for name, u in updates.items():
            np.testing.assert_allclose(got[name][r], PARAMS[name] + u, atol=1e-6)


def _mesh(shape: tuple[int, ...], names: tuple[str, ...], kind: AxisType) -> jax.sharding.Mesh:
    devices = jax.devices()[: int(np.prod(shape))]
    return jax.make_mesh(shape, names, axis_types=(kind,) * len(shape), devices=devices)


def test_devices_do_what_a_vmapped_axis_does() -> None:
    auto = optkit.AutoRate(8, 4.0, start_step=2, loss_scale=0.1)
    tx = optkit.hdet(heavy_ball, 0.05, axis_name="replica", alpha=0.5, every=2, auto=auto)
    losses = np.random.default_rng(6).standard_normal((5, 8))
    mesh = _mesh((8,), ("replica",), AxisType.Auto)
    want, got = (follow(tx, draws(5, 5, 8), losses, m, noise=0.01) for m in (None, mesh))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), got, want)


def test_a_replicas_batch_is_split_over_a_further_axis() -> None:
    """The compiler sums over `data` inside a replica: the gradient is that of the whole batch."""
    mesh = _mesh((4, 2), ("replica", "data"), AxisType.Auto)
    random = np.random.default_rng(7)
    x, y = (np.float32(random.standard_normal(s)) for s in ((4, 6, 3), (4, 6)))
    tx = optkit.hdet(optax.sgd, 0.1, axis_name="replica", alpha=0.5, every=2)

    def step(x: Any, y: Any, state: Any, p: Any) -> Any:
        loss, g = jax.value_and_grad(lambda p: jnp.mean((x @ p - y) ** 2))(p)
        updates, state = tx.update(g, state, p, loss=loss)
        return loss, state, optax.apply_updates(p, updates)

    ends = []
    for where in (None, mesh):
        params = optkit.replicas(jnp.ones(3), 4)
        state, given = optkit.on_replicas(tx.init, mesh=where)(params), (x, y)
        if where is not None:
            given = jax.device_put(given, NamedSharding(mesh, P("replica", "data")))
        run = jax.jit(optkit.on_replicas(step, mesh=where))
        for _ in range(2):
            loss, state, params = run(*given, state, params)
        ends.append(jax.device_get((loss, params)))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *ends)
    assert np.all(ends[1][1] == ends[1][1][:1])


def test_meetings_alone_exchange_parameters() -> None:
    """Of a compiled step, two all-reduces of parameters stand in the branch of meetings."""
    mesh = _mesh((4,), ("replica",), AxisType.Auto)
    tx = optkit.hdet(optax.sgd, 0.1, axis_name="replica", every=5)
    init, update = (optkit.on_replicas(f, mesh=mesh) for f in (tx.init, tx.update))
    params = optkit.replicas(PARAMS, 4)
    text = str(jax.make_jaxpr(update)(params, jax.eval_shape(init, params), params))
    outer, branches = text.split("cond[", 1)
    leaves = len(PARAMS)
    assert outer.count("psum") == leaves and "pmax" not in outer
    assert branches.count("psum") == branches.count("pmax") == leaves


def test_16_bit_parameters_keep_their_dtypes_and_meet() -> None:
    shapes = {"w": (12,), "empty": (0, 3), "number": ()}
    like = {k: jnp.linspace(0.5, 1.0, int(np.prod(s))).reshape(s) for k, s in shapes.items()}
    like = jax.tree.map(lambda p: p.astype(jnp.bfloat16), like) | {"none": None}
    tx = optkit.hdet(optax.adamw, 0.1, axis_name="replica", every=1)
    params = optkit.replicas(like, 4, noise=0.1)
    state = optkit.on_replicas(tx.init)(params)
    updates, after = jax.jit(optkit.on_replicas(tx.update))(params, state, params)
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    dtypes = [[x.dtype for x in jax.tree.leaves(tree)] for tree in (state, after)]
    assert dtypes[0] == dtypes[1]
    ends = optax.apply_updates(params, updates)["w"]
    assert jnp.mean(jnp.any(ends != ends[:1], 0)) < 0.1


def test_noise_is_for_floats_and_replicas_find_their_devices() -> None:
    tree = {"steps": jnp.array([100, 200]), "key": jax.random.key(0)}
    made = optkit.replicas(tree, 2, noise=0.5)
    assert (made["steps"] == tree["steps"][None]).all() and made["key"].shape == (2,)
    mesh = jax.make_mesh((2, 2), ("replica", "other"), devices=jax.devices()[:4])  # Explicit
    apart = optkit.on_replicas(lambda x: x - jax.lax.pmean(x, "replica"), mesh=mesh)
    assert apart(jnp.array([[1.0], [3.0]])).tolist() == [[-1.0], [1.0]]
    with pytest.raises(TypeError, match="must be the name of a mesh axis"):
        optkit.on_replicas(jnp.sum, mesh)


def test_a_noisy_start_has_the_size_that_was_asked_for() -> None:
    big = {"w": jnp.full((50, 40), 3.0), "e": jnp.zeros((0, 2))}
    made = optkit.replicas(big, 5, noise=0.01, key=1)
    apart = np.asarray(made["w"]) - 3.0
    np.testing.assert_allclose(apart.std((1, 2)), 0.03, rtol=0.1)
    assert np.all(np.abs(np.corrcoef(apart.reshape(5, -1)) - np.eye(5)) < 0.1)
    assert made["e"].shape == (5, 0, 2)


SGD = optax.sgd


@pytest.mark.parametrize("wrong", [["momentum"], "momentum", optkit.Spread(0.9), {1: 0.9}])
def test_what_is_explored_has_names(wrong: Any) -> None:
    for which in ("explore", "outside"):
        with pytest.raises(TypeError, match=f"{which}=.* must be a mapping from names"):
            optkit.hdet(SGD, 0.1, **{which: wrong})


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: optkit.hdet(SGD), "give the learning_rate that it is called with"),
        (lambda: optkit.hdet(SGD(0.1), explore={"b": 1.0}), "names arguments of a factory"),
        (lambda: optkit.hdet(SGD, 0.1, explore={"bb": 1.0}), "'bb', which inner does not take"),
        (lambda: optkit.hdet(SGD, 0.1, outside={"learning_rate": 1.0}), "is there already"),
        (lambda: optkit.hdet(SGD, explore={"momentum": "x"}), r"explore\['momentum'\] must be a"),
        (lambda: optkit.hdet(SGD, 0.1, outside={"rate": np.nan}), r"outside\['rate'\]=nan"),
        (lambda: optkit.hdet(SGD, 0.1, auto=optkit.AutoRate(9, 0.5)), "makes it grow"),
        (lambda: optkit.hdet(SGD, 0.1, alpha=1.5), "alpha=1.5"),
        (lambda: optkit.hdet(SGD, 0.1, every=0), "every=0"),
        (lambda: optkit.AutoRate(9, 2.0, start_step=9), "start earlier"),
        (lambda: optkit.AutoRate(9, 2.0, loss_scale=0.0), "loss_scale=0.0 must be above 0"),
    ],
)
def test_wrong_options_are_answered(build: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_wrong_use_is_answered() -> None:
    p = jnp.ones(2)
    steered = optkit.hdet(SGD, 0.1, auto=optkit.AutoRate(9, 2.0))
    with pytest.raises(ValueError, match=r"tx.update\(grads, state, params, loss=loss\)"):
        steered.update(p, steered.init(p), p)
    with pytest.raises(ValueError, match="must be a scalar"):
        steered.update(p, steered.init(p), p, loss=p)
    apart = optkit.hdet(SGD, 0.1, axis_name="replica")
    with pytest.raises(NameError, match="'replica', which is not there"):
        apart.init(p)
    both = optkit.replicas(p, 2)
    state = optkit.on_replicas(apart.init)(both)
    with pytest.raises(ValueError, match="hdet needs the parameters"):
        optkit.on_replicas(lambda g, s: apart.update(g, s))(both, state)
    with pytest.raises(KeyError, match="no scalar 'rate' is explored: it has learning_rate"):
        optkit.hdet_value(state, "rate")
    with pytest.raises(ValueError, match="has 4 devices, a replica each"):
        optkit.on_replicas(lambda x: x, mesh=_mesh((4,), ("replica",), AxisType.Auto))(both)
    with pytest.raises(ValueError, match="the mesh has no such axis"):
        optkit.on_replicas(lambda x: x, mesh=_mesh((4,), ("data",), AxisType.Auto))
