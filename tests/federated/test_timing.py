"""Schedules of asynchronous clients against a simulation of events, and their weights."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit

TIMES = st.lists(st.integers(1, 9), min_size=3, max_size=5, unique=True)


def simulated(times: Any, duration: float, count: int) -> list[dict[int, int]]:
    """Who reports at each step and from which version, a client at a time; integer times."""
    ready = {i: t for i, t in enumerate(times)}
    version = dict.fromkeys(ready, 0)
    out: list[dict[int, int]] = []
    while min(ready.values()) <= duration:
        who = sorted(ready, key=lambda i: (ready[i], i))[:count]
        now = max(ready[i] for i in who)
        out.append({i: version[i] for i in who})
        for i in who:
            ready[i], version[i] = now + times[i], len(out)
    return out


def as_rows(version: np.ndarray) -> list[dict[int, int]]:
    return [{i: int(v) for i, v in enumerate(row) if v >= 0} for row in version]


@given(times=TIMES)
@settings(max_examples=20, deadline=None)
def test_every_report_makes_a_step(times: Any) -> None:
    plan = optkit.async_schedule(times, 30, "async")
    assert as_rows(plan.version) == simulated(times, 30, 1)
    assert (np.diff(plan.at) >= 0).all() and plan.at[-1] <= 30


@given(times=TIMES, count=st.integers(2, 3))
@settings(max_examples=20, deadline=None)
def test_buffers_wait_for_the_last_of_a_few(times: Any, count: int) -> None:
    irrational = [t * np.sqrt(2 + i) for i, t in enumerate(times)]  # nobody is ready at once
    plan = optkit.async_schedule(irrational, 60, "fedbuff", count=count)
    assert as_rows(plan.version) == simulated(irrational, 60, count)
    assert (plan.present.sum(axis=1) == count).all()


@given(times=TIMES, interval=st.integers(1, 10))
@settings(max_examples=20, deadline=None)
def test_fixed_steps_take_who_is_ready(times: Any, interval: int) -> None:
    plan = optkit.async_schedule(times, 40, "fedfix", interval=interval)
    for i, t in enumerate(times):
        every = -(-t // interval)  # steps that a client works through
        steps = np.arange(1, len(plan.at) + 1)
        np.testing.assert_array_equal(plan.present[:, i], steps % every == 0)
        assert set(plan.staleness[plan.present[:, i], i]) <= {every - 1}


def test_staleness_counts_the_steps_in_between() -> None:
    plan = optkit.async_schedule([3.0, 1.0], 6, "async")
    for t, row in enumerate(as_rows(plan.version)):
        for i, version in row.items():
            assert plan.staleness[t, i] == t - version
    assert (plan.staleness[~plan.present] == 0).all()


@pytest.mark.parametrize(
    ("scheme", "options"), [("async", {}), ("fedfix", {"interval": 0.5}), ("fedbuff", {"count": 2})]
)
def test_per_unit_of_time_all_count_as_their_shares(scheme: Any, options: Any) -> None:
    times, shares = [1.0, 0.83, 0.61, 0.29], np.array([1.0, 2.0, 3.0, 4.0])
    known = options | ({"duration": 500.0} if scheme == "fedbuff" else {})
    weights = optkit.async_weights(times, shares, scheme, **known)
    plan = optkit.async_schedule(times, 500.0, scheme, **options)
    weight = weights * plan.present.sum(axis=0)
    np.testing.assert_allclose(weight / weight.sum(), shares / 10, rtol=0.02)


def test_equal_times_are_fedavg() -> None:
    shares = [1.0, 3.0]
    want = [0.25, 0.75]
    schemes: Any = (("sync", {}), ("fedfix", {"interval": 2.0}))
    for scheme, options in schemes:
        plan = optkit.async_schedule([2.0, 2.0], 6, scheme, **options)
        assert plan.version.tolist() == [[0, 0], [1, 1], [2, 2]]
        assert plan.at.tolist() == [2.0, 4.0, 6.0]
        weights = optkit.async_weights([2.0, 2.0], shares, scheme, **options)
        np.testing.assert_allclose(weights, want)


def test_identical_weights() -> None:
    given: Any = {"times": [1.0, 0.5, 0.2], "shares": [1, 1, 1], "identical": True}
    assert optkit.async_weights(scheme="async", **given).tolist() == [1.0] * 3
    assert optkit.async_weights(scheme="fedbuff", count=2, **given).tolist() == [0.5] * 3
    with pytest.raises(ValueError, match="identical=True is for"):
        optkit.async_weights(scheme="sync", **given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "fedfix"}, "interval=None: give a positive time"),
        ({"scheme": "fedbuff"}, "give count="),
        ({"scheme": "fedbuff", "count": 3}, "count=3 is more than the 2 clients"),
        ({"scheme": "fedbuff", "count": 1}, "give duration="),
        ({"scheme": "fedbuff", "count": 1, "duration": 0.5}, "client 0 reports in no step"),
        ({"scheme": "asynch"}, "did you mean 'async'"),
        ({"scheme": "sync", "shares": [1.0]}, "times has 2 clients and shares has 1"),
        ({"scheme": "sync", "times": [1.0, 0.0]}, "times must be one positive number"),
    ],
)
def test_what_does_not_fit_is_said(options: Any, message: str) -> None:
    given = {"times": [1.0, 0.4], "shares": [1.0, 1.0]} | options
    with pytest.raises(ValueError, match=message):
        optkit.async_weights(**given)
