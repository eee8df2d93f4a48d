"""NoLoCo: who meets whom, what it is for groups of all, and what it sends."""

import contextlib
from functools import partial
from typing import Any

import chex
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
from optkit.outer import groupings
from optkit.outer.groupings import _senders
from optkit.outer.moving import _turned, moved, trips, turns
from tests.conformance.hlo import collectives, sent_bytes
from tests.outer.test_diloco import AXIS, away, close, follow, start

Tree = Any


@given(st.integers(2, 25))
def test_pairs_are_a_round_robin(replicas: int) -> None:
    ways = groupings(replicas)
    met = [tuple(sorted(pair)) for way in ways for pair in way if len(pair) == 2]
    assert sorted(met) == [(i, j) for i in range(replicas) for j in range(i + 1, replicas)]
    alone = [pair[0] for way in ways for pair in way if len(pair) == 1]
    assert sorted(alone) == (list(range(replicas)) if replicas % 2 else [])
    for way in ways:
        assert sorted(i for pair in way for i in pair) == list(range(replicas))


@given(st.permutations(range(12)), st.sampled_from([1, 2, 3, 4, 6, 12]))
def test_each_row_leaves_its_block_once_and_arrives(order: list[int], blocks: int) -> None:
    rows = 12 // blocks
    got = [-1] * 12
    for way in trips(order, blocks):
        assert sorted(way.source) == list(range(blocks))  # each sends, and each gets
        for block, source in enumerate(way.source):
            for leave, arrive in zip(way.leave[source], way.arrive[block], strict=True):
                assert got[block * rows + arrive] == -1
                got[block * rows + arrive] = source * rows + leave
    assert got == order


@given(st.integers(3, 5), st.integers(2, 4))
def test_larger_groups_divide_replicas_and_differ(group: int, number: int) -> None:
    ways = groupings(group * number, group)
    for way in ways:
        assert sorted(i for members in way for i in members) == list(range(group * number))
        assert {len(members) for members in way} == {group}
    assert len({frozenset(map(frozenset, way)) for way in ways}) > 1
    assert groupings(group, group) == ((tuple(range(group)),),)


def test_groups_of_all_are_diloco_with_a_heavy_ball() -> None:
    got, state = follow(optkit.noloco(alpha=0.3, beta=0.6, group=3), start(3))
    want, _ = follow(optkit.diloco(optax.sgd(0.6, momentum=0.3)), start(3))
    close(got, want)
    close(state.anchor, got)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_the_mean_over_replicas_moves_as_if_all_met(seed: int) -> None:
    # While nobody has a momentum of its own yet, or all have the same; so it is for ever.
    outer = optkit.noloco(alpha=0.4, beta=0.7, gamma=0.9)
    params = start(4)
    state, step = outer.init(params), jax.jit(outer.step)
    mean = lambda tree: jax.tree.map(lambda x: np.float64(x).mean(0), tree)  # noqa: E731
    x: Tree = mean(params)
    d = jax.tree.map(np.zeros_like, x)
    for turn in range(3):
        worked = away(params, (seed + turn) % 2**32)
        gone = jax.tree.map(lambda a, b: a - b, mean(worked), mean(params))
        d = jax.tree.map(lambda d, g: 0.4 * d + 0.7 * g, d, gone)
        x = jax.tree.map(np.add, x, d)
        params, state = step(worked, state)
        close(mean(params), x)


def test_sending_parameters_alone_is_sending_anchors_too() -> None:
    groups = ((0, 2), (1, 3))
    results = []
    for gamma in (None, np.nextafter(0.7, 1.0)):
        outer = optkit.noloco(alpha=0.5, beta=0.7, gamma=gamma)
        params, state = start(4), outer.init(start(4))
        for seed in range(3):
            params, state = outer.step(away(params, seed), state, groups=groups)
        results.append(params)
    close(*results)


def test_replicas_are_pulled_together() -> None:
    outer = optkit.noloco()
    params = jnp.arange(8.0)[:, None]
    state, step = outer.init(params), jax.jit(outer.step)
    for _ in range(60):
        params, state = step(params, state)
    # Without work only the pull is left; the mean stays.
    np.testing.assert_allclose(params, 3.5, atol=1e-2)


def test_parameters_of_16_bits_keep_the_anchors_digits() -> None:
    outer = optkit.noloco(alpha=0.0, beta=0.004, gamma=0.004)
    params = jnp.ones((2, 1), jnp.bfloat16)
    state, step, digit = outer.init(params), jax.jit(outer.step), 2.0**-7
    for _ in range(100):
        params, state = step(params + jnp.bfloat16(digit), state)
    assert state.anchor.dtype == jnp.float32 and params.dtype == jnp.bfloat16
    np.testing.assert_allclose(state.anchor, 1.0 + 0.4 * digit, rtol=1e-4)


@pytest.mark.parametrize(("replicas", "group"), [(4, 2), (5, 2), (6, 3)])
def test_an_axis_name_gives_what_stacks_give(replicas: int, group: int) -> None:
    params = {"w": start(replicas)["w"]}
    want, _ = follow(optkit.noloco(group=group, key=3), params)
    outer = optkit.noloco(group=group, key=3, axis_name=AXIS)
    devices = jax.devices()[:replicas]
    mesh = jax.make_mesh((replicas,), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)
    for on in (None, mesh):
        got, state = follow(outer, params, mapped=lambda f, on=on: optkit.on_replicas(f, AXIS, on))
        close(got, want)
        assert state.count.tolist() == [3] * replicas
    assert not (want["w"] == want["w"][:1]).all()


def test_draws_depend_on_the_step_and_the_key() -> None:
    seen = set()
    for key in range(2):
        outer = optkit.noloco(alpha=0.0, beta=1.0, key=key)
        params = 2.0 ** jnp.arange(8.0)[:, None]
        state = outer.init(params)
        for _ in range(6):  # a sum of two powers tells who met
            sums, after = _step(outer)(params, state)
            seen.add((key, tuple((2.0 * sums[:, 0]).tolist())))
            state = state._replace(count=after.count)
    ways = {key: {way for k, way in seen if k == key} for key in range(2)}
    assert len(ways[0]) > 2 and ways[0] != ways[1]


def _step(outer: Any) -> Any:
    return jax.jit(outer.step)


@given(st.integers(2, 12), st.data())
def test_turns_of_the_circle_place_each_row(count: int, data: Any) -> None:
    order = data.draw(st.permutations(range(count)))
    got = {
        i: (by - i if over else by + i) % count
        for (over, by), rows in turns(order).items()
        for i in rows
    }
    assert got == dict(enumerate(order))
    most = max(len(turns(_senders(way, 1)).keys() - {(False, 0)}) for way in groupings(count))
    assert most <= 3 if count & (count - 1) else most <= count


def exchanged(kind: AxisType, devices: int, params: Any, groups: Any, told: bool) -> Any:
    """The program of a step on a mesh, and that of init; ``told`` by ``jax.set_mesh``."""
    mesh = jax.make_mesh((devices,), (AXIS,), axis_types=(kind,), devices=jax.devices()[:devices])
    place = NamedSharding(mesh, P(AXIS))
    placed, outer = jax.device_put(params, place), optkit.noloco()
    with jax.set_mesh(mesh) if told else contextlib.nullcontext():
        state = outer.init(placed)
        where = None
        if kind == AxisType.Auto:
            state = state._replace(count=jax.device_put(state.count, NamedSharding(mesh, P())))
            where = jax.tree.map(lambda x: x.sharding, (placed, state))
        step = jax.jit(lambda p, s: outer.step(p, s, groups=groups), out_shardings=where)
        compiled = step.lower(placed, state).compile()
        got = compiled(placed, state)[0]
    jax.tree.map(lambda x: chex.assert_equal(x.sharding.is_equivalent_to(place, 2), True), got)
    return compiled, got


# Devices, replicas, groups, exchanges of each way to divide them.
MESHES = [
    (8, 8, groupings(8)[4], 1),
    (8, 8, None, 7),
    (6, 6, groupings(6)[4], 1),
    (6, 6, ((0, 1, 3), (2, 5, 4)), 2),
    (5, 5, groupings(5)[1], 1),
    (5, 5, None, 5),
    (3, 6, groupings(6)[1], 2),
    (2, 6, ((0, 1), (2, 5), (3, 4)), 1),
]


@pytest.mark.sweep
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(("devices", "replicas", "groups", "exchanges"), MESHES)
def test_who_meets_on_a_mesh_is_sent_and_nobody_else(
    kind: AxisType, devices: int, replicas: int, groups: Any, exchanges: int
) -> None:
    params = {"w": jnp.arange(3.0 * replicas).reshape(replicas, 3)}
    told = kind == AxisType.Explicit or devices != 5
    compiled, got = exchanged(kind, devices, params, groups, told)
    assert collectives(compiled, scalars=True) == {"collective-permute": exchanges}
    if groups is not None:
        each = (len(groups[-1]) - 1) * 3 * 4 * replicas / devices
        assert sent_bytes(compiled, devices) <= each
    outer = optkit.noloco()
    close(got, jax.jit(partial(outer.step, groups=groups))(params, outer.init(params))[0])


def test_circles_are_sent_by_permutes_alone() -> None:
    mesh = jax.make_mesh((6,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:6])
    x = jax.device_put(jnp.arange(12.0).reshape(6, 2), NamedSharding(mesh, P(AXIS)))
    order = tuple(_senders(groupings(6)[1], 1))
    compiled = jax.jit(partial(_turned, senders=order), out_shardings=x.sharding).lower(x).compile()
    assert set(collectives(compiled, scalars=True)) == {"collective-permute"}
    np.testing.assert_array_equal(compiled(x), np.asarray(x)[list(order)])


def test_vmapped_and_differentiated_exchanges_are_those_of_indices() -> None:
    x, order = jnp.arange(24.0).reshape(2, 6, 2), (3, 0, 5, 1, 2, 4)
    got, back = jax.vjp(jax.vmap(lambda x: moved(x, order)), x)
    np.testing.assert_array_equal(got, x[:, order])
    np.testing.assert_array_equal(back(got)[0], x)


def test_along_an_axis_pairs_are_one_exchange_too() -> None:
    mesh = jax.make_mesh((6,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:6])
    outer, params = optkit.noloco(axis_name=AXIS), jnp.ones((6, 2))
    state = optkit.on_replicas(outer.init, AXIS, mesh)(params)
    for gamma, count in ((None, 1), (0.8, 2)):
        outer = optkit.noloco(axis_name=AXIS, gamma=gamma)
        step = lambda p, s, outer=outer: outer.step(p, s, groups=groupings(6)[1])  # noqa: E731
        compiled = jax.jit(optkit.on_replicas(step, AXIS, mesh)).lower(params, state).compile()
        assert collectives(compiled, scalars=True) == {"collective-permute": count}


def test_misuse_is_told() -> None:
    with pytest.warns(UserWarning, match=r"alpha=0\.7 and gamma=0\.7: the momentum outweighs"):
        optkit.noloco(alpha=0.7)
    with pytest.raises(ValueError, match="group=1 must be"):
        optkit.noloco(group=1)
    with pytest.raises(ValueError, match=r"beta=-1\.0"):
        optkit.noloco(beta=-1.0)
    outer = optkit.noloco()
    with pytest.raises(ValueError, match=r"group=3 does not divide the 4 replicas.*such as pairs"):
        optkit.noloco(group=3).init(jnp.ones((4, 1)))
    with pytest.raises(ValueError, match=r"one replica, and nobody.*replicas\(params, 2\)"):
        outer.init(jnp.ones((1, 1)))
    params = jnp.ones((4, 1))
    state = outer.init(params)
    with pytest.raises(ValueError, match="must be equally large and have each of the 4 replicas"):
        outer.step(params, state, groups=[(0, 1), (2, 2)])
    with pytest.raises(TypeError, match="give integers"):
        outer.step(params, state, groups=jnp.array([[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"\(4, 2\)"):
        outer.step(jnp.ones((4, 2)), state)
    with pytest.raises(NameError, match="noloco averages over the axis 'replica'"):
        optkit.noloco(axis_name=AXIS).init(params)
