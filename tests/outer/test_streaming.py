"""Streaming DiLoCo: its calendar, its fragments, and DiLoCo as what is left of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from optkit.outer.fragments import assign
from tests.outer.test_diloco import AXIS, away, close, follow, start

Tree = Any


def test_one_fragment_without_delay_is_diloco() -> None:
    outer = optkit.streaming_diloco(fragments=1, every=5)
    params = start(3)
    state = outer.init(params)
    for seed in range(3):
        assert outer.due(5 * seed + 4) == ()
        params, state = outer.step(away(params, seed), state, outer.due(5 * seed + 5))
    want, _ = follow(optkit.diloco(), start(3))
    close(params, want, rtol=0.0, atol=0.0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.data())
def test_each_fragment_starts_and_finishes_once_in_a_round(
    fragments: int, apart: int, data: st.DataObject
) -> None:
    delay, every = data.draw(st.integers(0, apart - 1)), fragments * apart
    outer = optkit.streaming_diloco(fragments=fragments, every=every, delay=delay)
    moving, seen = None, []
    for count in range(1, 3 * every + 1):
        for what, fragment in outer.due(count):
            if what == "start":
                assert moving is None
                moving, begun = fragment, count
            else:
                assert moving == fragment and count == begun + delay
                assert count == ((fragment + 1) * apart + every * (len(seen) // fragments))
                moving = None
                seen.append(fragment)
    assert seen == list(range(fragments)) * 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=9), st.data())
def test_fragments_by_number_are_in_order_and_none_is_empty(
    sizes: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    tree = {f"{i}": np.zeros(size) for i, size in enumerate(sizes)}
    places = [assign(tree, count)[f"{i}"] for i in range(len(sizes))]
    assert places == sorted(places) and set(places) == set(range(count))
    if len(set(sizes)) == 1 and sizes[0]:
        held = np.bincount(places)
        assert held.max() - held.min() <= 1


def test_a_late_finish_takes_the_early_displacement_and_the_replicas_own_place() -> None:
    outer = optkit.streaming_diloco(optax.sgd(0.5), fragments=1, every=4, delay=2, alpha=0.25)
    params = {"w": jnp.zeros((2, 1))}
    state = outer.init(params)
    early = {"w": jnp.array([[1.0], [3.0]])}
    same, state = outer.step(early, state, outer.due(2))
    assert same is early  # a start moves nothing
    late = {"w": jnp.array([[5.0], [7.0]])}
    params, state = outer.step(late, state, outer.due(4))
    assert state.anchor["w"].tolist() == [1.0]
    assert params["w"].tolist() == [[0.75 + 1.25], [0.75 + 1.75]]
    assert jax.tree.leaves(state.moving) == []


def test_other_fragments_are_left_alone_and_have_a_momentum_of_their_own() -> None:
    outer = optkit.streaming_diloco(fragments=[["b"], ["w"]], every=2)
    params = start(2)
    worked, state = away(params, 0), outer.init(params)
    got, after = jax.jit(outer.step, static_argnums=2)(worked, state, outer.due(1))
    assert bool((got["w"] == worked["w"]).all()) and not bool((got["b"] == worked["b"]).any())
    jax.tree.map(np.testing.assert_array_equal, after.optimizers[1], state.optimizers[1])
    assert bool((after.anchor["w"] == state.anchor["w"]).all())


def test_an_axis_name_gives_what_stacks_give() -> None:
    options: Any = {"fragments": 2, "every": 4, "delay": 1, "alpha": 0.5}

    def run(axis: str | None, mapped: Any) -> Tree:
        outer = optkit.streaming_diloco(axis_name=axis, **options)
        params = start(2)
        state = jax.jit(mapped(outer.init))(params)
        for count in range(1, 5):
            params, what = away(params, count), outer.due(count)
            if what:
                step = mapped(lambda p, s, what=what: outer.step(p, s, what))
                params, state = jax.jit(step)(params, state)
        return params

    mesh = jax.make_mesh(
        (2,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2]
    )
    want = run(None, lambda f: f)
    for on in (None, mesh):
        close(run(AXIS, lambda f, on=on: optkit.on_replicas(f, AXIS, on)), want)


def test_errors_of_compression_stay_with_their_fragment() -> None:
    average = optkit.powersgd_mean(AXIS, rank=1, min_compression_rate=0.0)
    outer = optkit.streaming_diloco(fragments=[["b"], ["w"]], every=2, axis_name=AXIS, mean=average)
    params = start(3)
    state = jax.jit(optkit.on_replicas(outer.init))(params)
    step = jax.jit(optkit.on_replicas(lambda p, s: outer.step(p, s, outer.due(2))))
    got, after = step(away(params, 1), state)
    assert bool((got["w"] == got["w"][:1]).all())
    assert float(jnp.abs(after.means[1].error.of_worker["w"]).max()) > 1e-3
    assert after.means[0].count.tolist() == [0, 0, 0] and after.means[1].count.tolist() == [1, 1, 1]


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match=r"every=5 is no multiple of the 2 fragments.*give 4 or"):
        optkit.streaming_diloco(fragments=2, every=5)
    with pytest.raises(ValueError, match="delay=2 must be below every/fragments=2"):
        optkit.streaming_diloco(fragments=2, every=4, delay=2)
    with pytest.raises(ValueError, match="alpha"):
        optkit.streaming_diloco(fragments=1, alpha=1.5)
    params = start(2)
    with pytest.raises(ValueError, match=r"leaf 'w' must be named by one .*none does"):
        optkit.streaming_diloco(fragments=[["b"]], every=2).init(params)
    with pytest.raises(ValueError, match=r"leaf 'b' must .*fragments \[0, 1\] do"):
        optkit.streaming_diloco(fragments=[["b"], ["*"]], every=2).init(params)
    with pytest.raises(ValueError, match=r"fragments\[2\]=\['z'\] names no leaf; there are b, w"):
        optkit.streaming_diloco(fragments=[["b"], ["w"], ["z"]], every=3).init(params)
    with pytest.raises(ValueError, match="fragments=3 are more than the 2 leaves"):
        optkit.streaming_diloco(fragments=3, every=3).init(params)
    outer = optkit.streaming_diloco(fragments=1, every=2, delay=1)
    with pytest.raises(ValueError, match="fragment 0 finishes but has not started"):
        outer.step(params, outer.init(params), outer.due(2))
