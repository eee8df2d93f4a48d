"""Schedules against slow formulas: continuity, falls, ends, branches, files."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit import schedules

SHAPES = ("inverse", "linear", "cosine", "sqrt")


def values(rate, end):
    """At steps 0 to end; of arrays of few lengths, for each of which operations compile."""
    whole = next(size for size in (100, 1000, 10_001) if size > end)
    return np.asarray(rate(jnp.arange(whole)), np.float64)[: end + 1]


def fall(shape, r, x):
    """The decays as the papers write them."""
    return {
        "inverse": lambda: 1 / (x / r + 1 - x),
        "linear": lambda: 1 - (1 - r) * x,
        "cosine": lambda: r + (1 - r) * (1 + math.cos(math.pi * x)) / 2,
        "sqrt": lambda: 1 - (1 - r) * math.sqrt(x),
    }[shape]()


@st.composite
def runs(draw):
    warmup, flat, decay = (draw(st.integers(low, 12)) for low in (0, 0, 1))
    return warmup, flat, decay


@given(
    run=runs(), r=st.floats(0.01, 1.0), peak=st.floats(1e-4, 10.0), shape=st.sampled_from(SHAPES)
)
def test_wsd_is_its_formula(run, r, peak, shape):
    warmup, flat, decay = run
    total = warmup + flat + decay
    rate = schedules.wsd(peak, total, warmup=warmup, decay=decay, final=r, shape=shape)
    want = [
        t / warmup if t < warmup else fall(shape, r, max(0, t - warmup - flat) / decay)
        for t in range(total + 1)
    ]
    got = values(rate, total)
    np.testing.assert_allclose(got, peak * np.array(want), rtol=2e-5)
    assert got[total] == pytest.approx(r * peak, rel=1e-5), "the floor at the end"
    assert float(rate(total + 100)) == got[total], "which holds"
    assert np.all(np.diff(got[warmup:]) <= 1e-6 * peak), "it never rises again"
    assert rate.steps == total


@pytest.mark.parametrize("shape", SHAPES)
def test_a_long_schedule_is_continuous(shape):
    rate = schedules.wsd(1.0, 10_000, warmup=0.1, decay=0.2, final=0.1, shape=shape)
    steps = np.abs(np.diff(values(rate, 10_000)))
    # sqrt(x) begins with a slope without bound.
    assert steps.max() < (0.025 if shape == "sqrt" else 6e-3)


def test_levanters_inverse_decay_begins_one_step_down_and_stays_a_step():
    late, exact = (
        values(schedules.wsd(1.0, 20, warmup=0, decay=10, exact=e), 20) for e in (False, True)
    )
    assert late[10] == late[11] == exact[11] < exact[10] == 1.0
    np.testing.assert_array_equal(late[11:], exact[11:])


def test_floats_up_to_1_are_shares_and_ints_are_steps():
    whole = schedules.wsd(1.0, 200, warmup=20, decay=50)
    assert schedules.wsd(1.0, 200, warmup=0.1, decay=0.25) == whole
    assert schedules.wsd(1.0, 200, warmup=20.0, decay=50.0) == whole
    assert schedules.wsd(1.0, 200, warmup=1, decay=50).phases[0].steps == 1
    with pytest.raises(ValueError, match=r"warmup=1\.5 is neither a share"):
        schedules.wsd(1.0, 200, warmup=1.5)


@given(
    lengths=st.lists(st.integers(6, 15), min_size=1, max_size=4),
    rewarmup=st.integers(0, 2),
    shape=st.sampled_from(SHAPES),
)
def test_wsd_s_falls_to_the_floor_at_each_end_and_is_back_at_once(lengths, rewarmup, shape):
    rate = schedules.wsd_s(
        2.0, lengths=lengths, warmup=2, decay=3, rewarmup=rewarmup, final=0.25, shape=shape
    )
    ends = list(itertools.accumulate(lengths))
    assert rate == schedules.wsd_s(
        2.0, ends, warmup=2, decay=3, rewarmup=rewarmup, final=0.25, shape=shape
    )
    got = values(rate, ends[-1])
    for index, end in enumerate(ends):
        assert got[end - 3] == 2.0
        # One step more of the fall is the floor: here, where it ends, or as the next begins.
        last = got[end - 1] / 2.0
        assert last == pytest.approx(fall(shape, 0.25, 2 / 3), rel=1e-5)
        nxt = 0.5 if index == len(ends) - 1 or rewarmup else 2.0
        assert got[end] == pytest.approx(nxt)
    # The first cycle is WSD.
    first = schedules.wsd(2.0, ends[0], warmup=2, decay=3, final=0.25, shape=shape)
    np.testing.assert_array_equal(got[: ends[0]], values(first, ends[0])[:-1])


@given(at=st.integers(3, 60), decay=st.integers(1, 9), shape=st.sampled_from(SHAPES))
def test_a_branch_is_the_trunk_and_then_a_fall(at, decay, shape):
    trunk = schedules.constant(0.5, warmup=10)
    rate = schedules.branch(trunk, at, decay, final=0.2, shape=shape)
    np.testing.assert_allclose(values(rate, at - 1), values(trunk, at - 1), rtol=1e-6)
    top = float(trunk(at))
    want = [top * fall(shape, 0.2, k / decay) for k in range(decay + 1)]
    got = values(rate, at + decay)[at:]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert rate.steps == at + decay


def test_a_branch_of_the_stable_phase_is_wsd():
    trunk = schedules.wsd(1.0, 1000, warmup=10, decay=100)
    assert (
        schedules.branch(trunk, 80, 20).phases
        == schedules.wsd(1.0, 100, warmup=10, decay=20).phases
    )
    with pytest.raises(ValueError, match=r"at=\d+ lies within steps 900 to 1000 .*'inverse'"):
        schedules.branch(trunk, 950, 10)


@given(steps=st.integers(2, 40), final=st.floats(0.0, 1.0), peak=st.floats(1e-3, 1.0))
def test_linear_and_cosine_are_optax_and_end_at_the_floor(steps, final, peak):
    pairs = (
        (schedules.linear, optax.linear_schedule(peak, final * peak, steps)),
        (schedules.cosine, optax.cosine_decay_schedule(peak, steps, final)),
    )
    for build, reference in pairs:
        got = values(build(peak, steps, final=final), steps)
        np.testing.assert_allclose(got, values(reference, steps), rtol=1e-5, atol=1e-7)


def test_powers_fall_as_they_say():
    rate = schedules.power(2.0, warmup=7, exponent=0.3, floor=0.5, steps=500)
    t = np.arange(1, 1000)
    want = 2.0 * np.where(t < 7, t / 7, np.maximum(np.minimum(t, 500) / 7.0, 1.0) ** -0.3)
    np.testing.assert_allclose(
        values(rate, 999)[1:], np.where(t < 7, want, np.maximum(want, 1.0)), 1e-5
    )
    root = values(schedules.inverse_sqrt(1.0, warmup=16), 6400)
    assert root[64] == pytest.approx(0.5) and root[6400] == pytest.approx(0.05)


@given(
    rise=st.integers(1, 59),
    low=st.floats(0.01, 1.0),
    factor=st.floats(0.1, 1.0),
    shape=st.sampled_from(["exponential", "linear"]),
)
def test_slow_start_rises_and_then_falls_without_a_jump(rise, low, factor, shape):
    rate = schedules.slow_start_fast_decay(0.5, 60, rise=rise, low=low, factor=factor, shape=shape)
    got = values(rate, 60)
    assert got[0] == pytest.approx(0.5 * low, rel=1e-5) and got.max() == pytest.approx(0.5)
    course = np.geomspace if shape == "exponential" else np.linspace
    np.testing.assert_allclose(got[: rise + 1], course(0.5 * low, 0.5, rise + 1), rtol=2e-5)
    assert np.all(np.diff(got[rise:]) <= 1e-7)
    # An epoch is 6 steps.
    if rise + 6 <= 60:
        assert got[rise + 6] == pytest.approx(0.5 * factor, rel=1e-4)


EVERY = {
    "constant": schedules.constant(0.1),
    "linear": schedules.linear(0.1, 50, warmup=5, skip_zero=True),
    "cosine": schedules.cosine(0.1, 50, final=0.1),
    "wsd": schedules.wsd(0.1, 50, warmup=5, decay=10, exact=False),
    "wsd_s": schedules.wsd_s(0.1, [20, 50], decay=5, rewarmup=2),
    "branch": schedules.branch(schedules.constant(0.1, warmup=5), 30, 10, shape="sqrt"),
    "power": schedules.power(0.1, warmup=5),
    "slow_start": schedules.slow_start_fast_decay(0.1, 50),
    "refined": schedules.refined(0.1, np.linspace(5.0, 1.0, 50)),
}


@pytest.mark.parametrize("name", EVERY)
def test_a_schedule_survives_a_file_and_a_scale(name, tmp_path):
    rate = EVERY[name]
    again = schedules.load(schedules.save(rate, tmp_path / "rate.json"))
    assert again == rate and hash(again) == hash(rate)
    np.testing.assert_array_equal(values(again, 60), values(rate, 60))
    np.testing.assert_allclose(values(rate.scaled(3.0), 60), 3.0 * values(rate, 60), rtol=1e-5)
    steps, drawn = rate.points(20)
    assert np.all(np.diff(steps) > 0) and {0, *rate.starts} <= {*steps.tolist()}
    np.testing.assert_array_equal(drawn, values(rate, steps[-1])[steps])


@pytest.mark.parametrize("name", EVERY)
def test_any_count_gives_a_float32_of_its_shape(name):
    rate = EVERY[name]
    for count in (0, jnp.int32(3), jnp.arange(4), jnp.float32(2.0), np.int64(7)):
        got = jax.eval_shape(rate, count)
        assert (got.shape, got.dtype) == (jnp.shape(count), jnp.float32)
    assert float(rate(-1)) == float(rate(0))


def test_equal_schedules_make_one_optimizer():
    one, two = (optkit.adamw(schedules.wsd(0.1, 100)) for _ in range(2))
    assert one is two


def test_a_schedule_may_be_injected():
    tx = optax.inject_hyperparams(optkit.adamw)(learning_rate=schedules.linear(0.4, 4))
    params = {"w": jnp.ones(2)}
    state = tx.init(params)
    for want in (0.4, 0.3, 0.2):
        _, state = tx.update(params, state, params)
        assert float(state.hyperparams["learning_rate"]) == pytest.approx(want)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: schedules.wsd(1.0, 10, warmup=6, decay=5), r"take 6 \+ 5 of 10 steps"),
        (lambda: schedules.wsd(1.0, 10, final=0.0), "inverse decay does not reach final=0"),
        (lambda: schedules.wsd(1.0, 10, shape="linaer"), "did you mean 'linear'"),
        (lambda: schedules.wsd(jnp.float32(1.0), 10), "for a traced rate multiply"),
        (lambda: schedules.wsd_s(1.0, [10, 10]), "must rise"),
        (lambda: schedules.wsd_s(1.0, 100), r"ends=100 must be a list"),
        (lambda: schedules.wsd(1.0, 100, warmup=1.5), "neither a share"),
        (lambda: optkit.adamw(schedules.wsd), r"give what wsd\(...\) returns"),
        (lambda: optkit.adamw(lambda: 0.1), "a function of the step alone"),
        (lambda: schedules.wsd_s(1.0), "ends of its cycles, or their lengths"),
        (lambda: schedules.cosine(1.0, 10, final=1.5), "is a share of the peak"),
        (lambda: schedules.linear(-1.0, 10), "peak=-1.0 must be a finite"),
        (lambda: schedules.linear(1.0, 0), "steps=0 must be a whole number"),
        (lambda: schedules.slow_start_fast_decay(1.0, 10, rise=1.0), "leave some on both sides"),
        (lambda: schedules.from_dict({"form": "other"}), "these data are no schedule"),
        (lambda: schedules.save(lambda t: t, "x.json"), "only those can be written"),
        (lambda: schedules.refine([1.0]), "are no series"),
        (lambda: schedules.refine([0.0, math.inf]), "none of the gradient norms is finite"),
    ],
)
def test_what_makes_no_sense_is_refused(build, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build()


def test_a_file_that_holds_no_schedule_is_named(tmp_path):
    file = tmp_path / "other.json"
    data = schedules.constant(1.0).to_dict()
    data["phases"][0]["speed"] = 3
    for text in ("[1", '{"a": 1}', json.dumps(data)):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"other\.json"):
            schedules.load(file)
    file.write_text("words")
    with pytest.raises(ValueError, match="is no schedule file"):
        schedules.load(file)


def test_a_file_may_lie_in_a_new_folder(tmp_path):
    rate = schedules.constant(1.0)
    assert schedules.load(schedules.save(rate, tmp_path / "new" / "rate.json")) == rate
