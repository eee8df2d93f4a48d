"""Refined schedules against the double sum, and what their shape has to be."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit import schedules

SERIES = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30)


def slow(norms, power, smooth):
    """The formula with Python's floats, one sum a step."""
    total = len(norms)
    half = int(smooth * total) // 2

    def at(i):
        if i < 0:
            return norms[0]
        while i >= total:  # reflected at the last
            i = abs(2 * (total - 1) - i)
        return norms[i]

    smoothed = [
        statistics.median(at(i) for i in range(t - half, t + half + 1)) for t in range(total)
    ]
    weights = [g**-power for g in smoothed]
    course = [c * math.fsum(weights[t + 1 :]) for t, c in enumerate(weights)]
    return np.array(course) / max(course)


@given(norms=SERIES, kind=st.sampled_from(["adam", "sgd"]), smooth=st.floats(0.0, 0.6))
def test_it_is_the_double_sum(norms, kind, smooth):
    got = schedules.refine(norms, kind, smooth=smooth)
    np.testing.assert_allclose(got, slow(norms, {"adam": 1, "sgd": 2}[kind], smooth), rtol=1e-9)


@given(size=st.integers(2, 60), norm=st.floats(1e-30, 1e30), kind=st.sampled_from(["adam", "sgd"]))
def test_constant_norms_give_linear_decay(size, norm, kind):
    got = schedules.refine([norm] * size, kind)
    np.testing.assert_allclose(got, np.arange(size)[::-1] / (size - 1), atol=1e-12)


@given(size=st.integers(5, 40), bad=st.sets(st.integers(0, 39), max_size=4))
def test_what_is_not_finite_is_skipped(size, bad):
    norms = np.full(size, 3.0)
    norms[[i for i in bad if i < size][: size - 1]] = [math.inf, math.nan, 0.0, -math.inf][
        : len([i for i in bad if i < size][: size - 1])
    ]
    np.testing.assert_allclose(
        schedules.refine(norms), np.arange(size)[::-1] / (size - 1), atol=1e-12
    )


def test_large_early_norms_warm_up_and_falling_late_ones_anneal_faster():
    early = schedules.refine(np.r_[np.linspace(10.0, 1.0, 20), np.ones(80)], "sgd")
    assert early[0] < 0.1 and 5 < early.argmax() < 30
    late = schedules.refine(np.r_[np.ones(80), np.linspace(1.0, 0.25, 20)], smooth=0.0)
    assert late[80] > 1.5 * 19 / 99, "more is left for the end than by linear decay"
    assert -np.diff(late)[-10:].mean() > 1.2 / 99, "and it falls the faster there"


@given(norms=SERIES, factor=st.sampled_from([1e-3, 7.0]))
def test_the_unit_of_norms_does_not_matter(norms, factor):
    scaled = schedules.refine(np.array(norms) * factor, "sgd")
    np.testing.assert_allclose(scaled, schedules.refine(norms, "sgd"), rtol=1e-9)


def test_the_schedule_takes_its_values_and_ends_at_0():
    norms = np.linspace(1.0, 2.0, 12)
    rate = schedules.refined(0.5, norms, "sgd")
    got = np.array([float(rate(t)) for t in range(13)])
    np.testing.assert_allclose(got[:12], 0.5 * schedules.refine(norms, "sgd"), rtol=1e-6)
    assert got[11] == got[12] == 0.0 and rate.steps == 12
    assert max(got) == pytest.approx(0.5)
