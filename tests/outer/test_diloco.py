"""DiLoCo: what it is in special cases, equal replicas, both forms, and what it sends."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import optkit
from tests.conformance.hlo import collectives

AXIS = "replica"
SHAPES = {"b": (3,), "w": (4, 2)}
Tree = Any


def drawn(seed: int, replicas: int, dtype: Any = jnp.float32) -> Tree:
    """Normal numbers of all replicas."""
    random = np.random.default_rng(seed)
    return {
        k: jnp.asarray(random.standard_normal((replicas, *s)), dtype) for k, s in SHAPES.items()
    }


def start(replicas: int, dtype: Any = jnp.float32) -> Tree:
    return optkit.replicas(jax.tree.map(lambda x: x[0], drawn(9, 1, dtype)), replicas)


def away(params: Tree, seed: int, size: float = 0.1) -> Tree:
    """Where replicas are after work of their own."""
    replicas = len(params["w"])
    moves = drawn(seed, replicas)
    return {k: (p - size * moves[k].astype(p.dtype)).astype(p.dtype) for k, p in params.items()}


def follow(outer: Any, params: Tree, steps: int = 3, mapped: Any = lambda f: f) -> tuple[Tree, Any]:
    """Rounds of equal work: parameters and state after the last one."""
    state, step = jax.jit(mapped(outer.init))(params), jax.jit(mapped(outer.step))
    for seed in range(steps):
        params, state = step(away(params, seed), state)
    return jax.device_get((params, state))


def close(got: Tree, want: Tree, **options: float) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            np.float64(a), np.float64(b), **{"rtol": 1e-6, "atol": 1e-6} | options
        ),
        got,
        want,
    )


def test_one_replica_one_plain_step_is_gradient_descent() -> None:
    outer, rate = optkit.diloco(optax.sgd(1.0)), 0.3
    run = optkit.local_rounds(lambda x, g: (x - rate * g, None), every=1)
    params = jnp.float32([[1.0, -2.0]])
    state, plain = outer.init(params), params
    for seed in range(3):
        g = jax.random.normal(jax.random.key(seed), (1, 1, 2))
        worked, _ = optkit.on_replicas(run)(params, g)
        params, state = outer.step(worked, state)
        plain = plain - rate * g[:, 0]
        close(params, plain)


def test_a_plain_outer_step_is_federated_averaging() -> None:
    params = start(3)
    server = optkit.server_step(optkit.aggregate.mean(), optax.sgd(1.0))
    x: Tree = jax.tree.map(lambda p: p[0], params)
    held = server.init(x, 3)
    outer = optkit.diloco(optax.sgd(1.0))
    state = outer.init(params)
    for seed in range(2):
        worked = away(params, seed)
        params, state = outer.step(worked, state)
        moved = jax.tree.map(lambda a, b: a[None] - b, x, worked)
        x, held = server.step(x, held, moved)
        close(params, optkit.replicas(x, 3))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([3, 8]), st.sampled_from(["float32", "bfloat16"]))
def test_replicas_are_equal_bit_for_bit(seed: int, replicas: int, dtype: str) -> None:
    outer = optkit.diloco()
    params = start(replicas, dtype)
    worked = away(params, seed)
    params, state = _step(outer)(worked, outer.init(params))
    for name, p in params.items():
        assert p.dtype == dtype
        assert bool((p == p[:1]).all()) and not bool((worked[name] == p).all())
        assert state.anchor[name].dtype == jnp.float32
        assert bool((state.anchor[name].astype(dtype) == p[0]).all())


def _step(outer: Any) -> Any:
    return jax.jit(outer.step)  # the factory gives one object, so this compiles once a shape


def test_an_outer_step_is_linear_in_the_displacement() -> None:
    outer, params = optkit.diloco(), start(2)
    state = outer.init(params)

    def moved(size: float) -> Tree:
        new = outer.step(away(params, 4, size), state)[1].anchor
        return jax.tree.map(lambda x, y: x - y, new, state.anchor)

    close(moved(0.4), jax.tree.map(lambda x: 4.0 * x, moved(0.1)), atol=5e-6)


def test_moves_below_the_digits_of_16_bits_add_up() -> None:
    # A step of 0.5 % of a digit vanishes in bfloat16, and is kept in the anchor.
    outer = optkit.diloco(optax.sgd(0.005))
    params = jnp.ones((2, 1), jnp.bfloat16)
    state, step = outer.init(params), jax.jit(outer.step)
    digit = 2.0**-7
    for _ in range(150):
        params, state = step(params + jnp.bfloat16(digit), state)
    assert float(params[0, 0]) == 1.0 + digit
    assert float(state.anchor[0]) == pytest.approx(1.0 + 0.75 * digit, rel=1e-4)
    # Where nobody moves, nothing does: what rounding of the anchor took is no displacement.
    assert float(outer.step(params, state)[1].anchor[0]) == float(state.anchor[0])


@pytest.mark.parametrize("wire", [None, "bfloat16"])
def test_an_axis_name_gives_what_stacks_give(wire: str | None) -> None:
    want, state = follow(optkit.diloco(wire_dtype=wire), start(4))
    outer = optkit.diloco(wire_dtype=wire, axis_name=AXIS)
    mesh = jax.make_mesh((4, 2), (AXIS, "x"), axis_types=(AxisType.Auto,) * 2)
    for on in (None, mesh):
        mapped = lambda f, on=on: optkit.on_replicas(f, AXIS, on)  # noqa: E731
        got, own = follow(outer, start(4), mapped=mapped)
        # In 16 bits sums of four in another order differ by their digits.
        close(got, want, atol=1e-6 if wire is None else 3e-3)
        close(jax.tree.map(lambda a: a[0], own.anchor), state.anchor, atol=3e-3)
        for p in got.values():
            assert (p == p[:1]).all()
    if wire:
        plain, _ = follow(optkit.diloco(), start(4))
        assert any((plain[name] != want[name]).any() for name in want)


def _mesh(kind: str) -> Any:
    types = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
    return jax.make_mesh((4, 2), (AXIS, "x"), axis_types=(types[kind],) * 2)


@pytest.mark.parametrize("kind", ["auto", "explicit"])
def test_stacks_on_a_mesh_send_one_average_and_stay_where_they_are(kind: str) -> None:
    outer, mesh = optkit.diloco(), _mesh(kind)
    specs = {"b": P(AXIS), "w": P(AXIS, "x")}
    place = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    params = jax.device_put(start(4), place)
    with jax.set_mesh(mesh):
        state = outer.init(params)
        assert state.anchor["w"].sharding.spec[0] == "x"
        out = None if kind == "explicit" else (place, None)
        step = jax.jit(outer.step, out_shardings=out).lower(params, state).compile()
        got, _ = step(jax.device_put(away(params, 1), place), state)
    assert set(collectives(step)) == {"all-reduce"}
    for name in specs:
        assert got[name].sharding.is_equivalent_to(place[name], got[name].ndim)
    want = outer.step(away(start(4), 1), outer.init(start(4)))[0]
    close(got, want)


@pytest.mark.parametrize("form", ["codes", "factors"])
def test_averages_that_send_less_keep_replicas_equal_and_lose_nothing(form: str) -> None:
    average = {
        "codes": optkit.compressed_mean(
            optkit.codecs.UniformCodec(bits=4, block=8), AXIS, every_leaf=True
        ),
        "factors": optkit.powersgd_mean(AXIS, rank=1, min_compression_rate=0.0),
    }[form]
    outer = optkit.diloco(optax.sgd(1.0), axis_name=AXIS, mean=average)
    mapped = lambda f: optkit.on_replicas(f, AXIS)  # noqa: E731
    params = start(4)
    state, step = jax.jit(mapped(outer.init))(params), jax.jit(mapped(outer.step))
    total: Tree = jax.tree.map(jnp.zeros_like, params)
    first = params
    for seed in range(5):
        worked = away(params, seed)
        total = jax.tree.map(
            lambda t, a, b: t + (a - b).mean(0, keepdims=True), total, params, worked
        )
        params, state = step(worked, state)
        for p in params.values():
            assert bool((p == p[:1]).all())
    moved = jax.tree.map(lambda a, b: a - b, first, params)
    # Errors wait at each: of what was to be moved, only the last round's is missing.
    error = max(float(jnp.abs(moved[k] - total[k]).max()) for k in moved)
    assert 1e-5 < error < 0.15, error
    waiting = state.mean.error.of_worker
    if form == "codes":
        served = waiting["server"]["w"].reshape(-1)
        missing = waiting["worker"]["w"][:, 0].mean(0) + served
        sent = (total["w"] - moved["w"])[0].reshape(-1)
        np.testing.assert_allclose(missing[: sent.size], sent, atol=2e-6)
    else:
        missing = waiting["w"].mean(0)
        np.testing.assert_allclose(missing, (total["w"] - moved["w"])[0], atol=2e-6)


def test_misuse_is_told() -> None:
    with pytest.raises(TypeError, match=r"outer_tx must be .*; call it: optax\.sgd"):
        optkit.diloco(optax.sgd)
    with pytest.raises(ValueError, match="give axis_name, the same as in mean"):
        optkit.diloco(mean=optkit.powersgd_mean(AXIS))
    with pytest.raises(ValueError, match="give one of the two"):
        optkit.diloco(mean=optkit.powersgd_mean(AXIS), axis_name=AXIS, wire_dtype="bfloat16")
    with pytest.raises(ValueError, match="wire_dtype='int8' must be a type of floats"):
        optkit.diloco(wire_dtype="int8")
    outer = optkit.diloco()
    with pytest.raises(ValueError, match=r"shape \(4, 2\) at leaf 'w'.*optkit.replicas"):
        outer.init({"b": jnp.ones((3, 1)), "w": jnp.ones((4, 2))})
    with pytest.raises(TypeError, match="int32 at leaf 'n'"):
        outer.init({"n": jnp.ones((3, 1), jnp.int32)})
    with pytest.raises(ValueError, match=r"has shape .*stacked along a leading axis of replicas"):
        outer.step(jnp.ones((2, 3)), outer.init(jnp.ones((2, 4))))
    with pytest.raises(NameError, match="diloco averages over the axis 'replica'"):
        optkit.diloco(axis_name=AXIS).init(jnp.ones(2))
