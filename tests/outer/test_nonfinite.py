"""Replicas of which one is not finite: the step is left out for all alike, and told."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import optkit
from tests.outer.test_diloco import AXIS, away, close, start

REPLICAS, BAD = 4, 2


def spoilt(params: Any, value: float) -> Any:
    """One entry of one replica is not finite."""
    return params | {"w": params["w"].at[BAD, 0, 0].set(value)}


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def mapping(form: str) -> Any:
    """How ``init`` and ``step`` reach the replicas."""
    if form == "stack":
        return lambda f: f
    mesh = None
    if form == "mesh":
        mesh = jax.make_mesh((REPLICAS, 2), (AXIS, "x"), axis_types=(AxisType.Auto,) * 2)
    return lambda f: optkit.on_replicas(f, AXIS, mesh)


@pytest.mark.parametrize("form", ["stack", "vmap", "mesh"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_skipped_step_changes_nothing_but_the_counter(form: str, value: float) -> None:
    name = None if form == "stack" else AXIS
    outer, mapped = optkit.diloco(axis_name=name, nonfinite="skip"), mapping(form)
    first = start(REPLICAS)
    step, held = jax.jit(mapped(outer.step)), jax.jit(mapped(outer.init))(first)
    params, held = step(away(first, 0), held)
    after, skipped = step(spoilt(away(params, 1), value), held)
    same(after, params)
    for p in after.values():
        assert (p == p[:1]).all()
    assert np.unique(skipped.skipped).tolist() == [1]
    same(skipped._replace(skipped=held.skipped), held)
    # What follows is what would have been.
    got, told = step(away(after, 2), skipped)
    plain = optkit.diloco()
    x, state = plain.step(away(first, 0), plain.init(first))
    want, _ = plain.step(away(x, 2), state)
    close(got, want)
    assert np.unique(told.skipped).tolist() == [1]


def test_by_default_it_is_seen_in_all_replicas() -> None:
    outer = optkit.diloco()
    params = start(REPLICAS)
    got, state = outer.step(spoilt(away(params, 0), np.nan), outer.init(params))
    assert bool(jnp.isnan(got["w"][:, 0, 0]).all()) and state.skipped is None


@pytest.mark.parametrize("form", ["codes", "factors"])
def test_averages_that_hide_what_is_not_finite_are_seen_through(form: str) -> None:
    average = {
        "codes": optkit.compressed_mean(
            optkit.codecs.UniformCodec(bits=4, block=8), AXIS, every_leaf=True
        ),
        "factors": optkit.powersgd_mean(AXIS, rank=1, min_compression_rate=0.0),
    }[form]
    outer = optkit.diloco(optax.sgd(1.0), axis_name=AXIS, mean=average, nonfinite="skip")
    mapped, params = mapping("vmap"), start(REPLICAS)
    step, state = jax.jit(mapped(outer.step)), jax.jit(mapped(outer.init))(params)
    params, state = step(away(params, 0), state)
    after, told = step(spoilt(away(params, 1), np.inf), state)
    same(after, params)
    same(told._replace(skipped=state.skipped), state)
    assert told.skipped.tolist() == [1] * REPLICAS


def test_a_sum_beyond_the_range_of_what_is_sent_is_skipped() -> None:
    outer = optkit.diloco(optax.sgd(1.0), wire_dtype="float16", nonfinite="skip")
    params = jnp.zeros((2, 1))
    state = outer.init(params)
    for size, count in ((3e4, 0), (6e4, 1)):  # the sum of two of them is 1.2e5, and 65504 the most
        moved, told = outer.step(params + size, state)
        assert int(told.skipped) == count
        assert bool((moved == (0.0 if count else size)).all())


@pytest.mark.parametrize("form", ["stack", "vmap"])
def test_fragments_send_all_back_and_go_on(form: str) -> None:
    outer = optkit.streaming_diloco(
        fragments=[["b"], ["w"]],
        every=4,
        delay=1,
        alpha=0.5,
        axis_name=None if form == "stack" else AXIS,
        nonfinite="skip",
    )
    mapped, params = mapping(form), start(REPLICAS)
    state = mapped(outer.init)(params)
    anchor: Any = jax.tree.map(lambda p: p, params)

    def turn(params: Any, state: Any, count: int, value: float | None = None) -> Any:
        worked = away(params, count)
        if value is not None:
            # Its gradients are not finite: so is all of it.
            worked = jax.tree.map(lambda p: p.at[BAD].set(value), worked)
        step = mapped(lambda p, s: outer.step(p, s, outer.due(count)))
        return step(worked, state)

    params, state = turn(params, state, 1, np.nan)
    params, after = turn(params, state, 2, np.nan)
    same(params, anchor)
    assert np.unique(after.skipped).tolist() == [1]
    assert jax.tree.leaves(after.moving) == []
    same((after.anchor, after.optimizers), (state.anchor, state.optimizers))
    for count in (3, 4, 5, 6):
        params, after = turn(params, after, count)
    assert np.unique(after.skipped).tolist() == [1]
    assert all(bool(jnp.isfinite(p).all()) for p in params.values())
    assert all(
        bool((a != b).any())
        for a, b in zip(*map(jax.tree.leaves, (after.anchor, state.anchor)), strict=True)
    )


def test_one_fragment_without_delay_skips_as_diloco_does() -> None:
    params = start(2)
    whole = optkit.diloco(nonfinite="skip")
    parts = optkit.streaming_diloco(fragments=1, every=1, nonfinite="skip")
    one, other = (params, whole.init(params)), (params, parts.init(params))
    for seed in range(3):
        worked = [away(p, seed) for p, _ in (one, other)]
        if seed == 1:
            worked = [p | {"b": p["b"].at[0, 0].set(jnp.nan)} for p in worked]
        one = whole.step(worked[0], one[1])
        other = parts.step(worked[1], other[1], parts.due(seed + 1))
        same(one[0], other[0])
        assert int(one[1].skipped) == int(other[1].skipped) == (seed > 0)


def test_another_word_is_named() -> None:
    with pytest.raises(ValueError, match=r"nonfinite='skipped'.*did you mean 'skip'"):
        optkit.diloco(**{"nonfinite": "skipped"})


@pytest.mark.parametrize("form", ["stack", "vmap", "mesh"])
def test_noloco_leaves_out_the_groups_that_are_not_finite(form: str) -> None:
    name = None if form == "stack" else AXIS
    groups, mapped = ((0, 1), (BAD, 3)), mapping(form)
    outer, plain = optkit.noloco(axis_name=name, nonfinite="skip"), optkit.noloco()
    first = start(REPLICAS)
    step = jax.jit(mapped(lambda params, state: outer.step(params, state, groups=groups)))
    params, held = step(away(first, 0), jax.jit(mapped(outer.init))(first))
    x, state = plain.step(away(first, 0), plain.init(first), groups=groups)
    close(params, x)
    assert not held.skipped.any()
    got, told = step(spoilt(away(params, 1), np.nan), held)
    want, _ = plain.step(away(x, 1), state, groups=groups)
    for after, before, other in zip(*map(jax.tree.leaves, (got, params, want)), strict=True):
        np.testing.assert_array_equal(after[BAD:], before[BAD:])
        np.testing.assert_allclose(after[:BAD], other[:BAD], rtol=1e-6)
    same(
        jax.tree.map(lambda m: m[BAD:], told.momentum),
        jax.tree.map(lambda m: m[BAD:], held.momentum),
    )
    assert told.skipped.tolist() == [0, 0, 1, 1]


def test_arrivals_that_are_not_finite_can_be_left_out_of_delayed_nesterov() -> None:
    guarded, plain = (
        optkit.skip_nonfinite(optkit.delayed_nesterov(every=2)),
        optkit.delayed_nesterov(every=2),
    )
    x, bad = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, np.nan, 1.0])}
    state, other = guarded.init(x), plain.init(x)
    for given in (x, bad, x, x):
        got, state = guarded.update(given, state, x)
        if given is not bad:
            want, other = plain.update(given, other, x)
            same(got, want)
    assert int(state.skipped) == 1


CUT = {
    "diloco": (optkit.diloco, {}),
    "codes": (
        optkit.diloco,
        {"mean": optkit.compressed_mean(optkit.codecs.UniformCodec(block=8), AXIS)},
    ),
    "streaming": (optkit.streaming_diloco, {"fragments": 1, "every": 1}),
    "noloco": (optkit.noloco, {}),
}
PARTS = {"w": P(AXIS, None, "x"), "b": P(AXIS, "x")}


def by_parts(outer: Any, extra: tuple[Any, ...] = ()) -> tuple[Any, Any]:
    """Functions init and step, each device of which holds a part; state along a new axis."""
    mesh = jax.make_mesh((REPLICAS, 2), (AXIS, "x"), axis_types=(AxisType.Auto,) * 2)
    state, one = P((AXIS, "x")), lambda tree: jax.tree.map(lambda x: x[0], tree)
    more = lambda tree: jax.tree.map(lambda x: x[None], tree)  # noqa: E731

    def start(params: Any) -> Any:
        return more(outer.init(one(params)))

    def step(params: Any, state: Any) -> Any:
        params, state = outer.step(one(params), one(state), *extra)
        return more(params), more(state)

    both = (PARTS, state)
    return (
        jax.shard_map(start, mesh=mesh, in_specs=(PARTS,), out_specs=state),
        jax.shard_map(step, mesh=mesh, in_specs=both, out_specs=both),
    )


@pytest.mark.parametrize("name", CUT)
def test_parts_of_a_model_are_skipped_all_or_none(name: str) -> None:
    factory, options = CUT[name]
    outer = factory(axis_name=AXIS, nonfinite="skip", coordinates_axis="x", **options)
    extra = (outer.due(1),) if name == "streaming" else ()
    params = {"w": jnp.ones((REPLICAS, 2, 4)), "b": jnp.ones((REPLICAS, 4))}
    init, step = by_parts(outer, extra)
    held, step = jax.jit(init)(params), jax.jit(step)
    for value, skipped in ((2.0, 0), (np.nan, 1)):  # in one part of one leaf of one replica
        worked = jax.tree.map(lambda p: p + 1.0, params)
        worked["w"] = worked["w"].at[BAD, 0, 3].set(value)
        after, told = step(worked, held)
        counts = told.skipped.reshape(REPLICAS, 2)
        assert (counts[:, 0] == counts[:, 1]).all() and counts.max() == counts[BAD, 0] == skipped
        for leaf, p in after.items():
            assert bool((p[BAD] == params[leaf][BAD]).all()) == (skipped == 1)
    forgotten = factory(axis_name=AXIS, nonfinite="skip", **options)
    with pytest.raises(ValueError, match=r"'\w' varies along .*give coordinates_axis='x'"):
        jax.eval_shape(by_parts(forgotten, extra)[1], params, held)


def test_axes_of_parts_are_told_from_those_of_replicas() -> None:
    with pytest.raises(ValueError, match="both have 'x'"):
        optkit.diloco(axis_name="x", coordinates_axis="x")
    with pytest.raises(ValueError, match=r"coordinates_axis='x' is for jax\.shard_map"):
        optkit.noloco(coordinates_axis="x")
