"""The transfer laws are products of powers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.schedules import (
    hyperp_fitted_learning_rate,
    hyperp_learning_rate,
    hyperp_residual_scale,
)

SIZES = st.floats(0.01, 1e4)


def test_the_base_run_keeps_its_rate():
    assert hyperp_learning_rate(0.0123) == 0.0123
    assert hyperp_learning_rate(0.0123, depth=8, tokens=10.4e9, batch=2**21) == 0.0123


@given(k=SIZES, base=st.floats(1e-4, 1.0))
def test_each_size_has_its_exponent(k, base):
    for name, start, exponent in (
        ("depth", 8, -0.5), ("tokens", 10.4e9, -0.32), ("batch", 2**21, 0.5)
    ):  # fmt: skip
        got = hyperp_learning_rate(base, **{name: k * start})
        assert math.log(got / base) == pytest.approx(exponent * math.log(k), abs=1e-9)


@given(depth=SIZES, tokens=SIZES, batch=SIZES)
def test_a_run_may_be_reached_in_steps(depth, tokens, batch):
    sizes = {"depth": 8 * depth, "tokens": 10.4e9 * tokens, "batch": 2**21 * batch}
    direct = hyperp_learning_rate(0.01, **sizes)
    half = hyperp_learning_rate(0.01, depth=32, tokens=1e9)
    bases = {"base_depth": 32, "base_tokens": 1e9}
    assert hyperp_learning_rate(half, **sizes, **bases) == pytest.approx(direct, rel=1e-12)


def test_exponents_may_be_measured_anew():
    got = hyperp_learning_rate(1.0, tokens=104e9, token_exponent=-0.5)
    assert got == pytest.approx(10**-0.5)
    got = hyperp_learning_rate(1.0, batch=2**22, batch_exponent=0.558)
    assert got == pytest.approx(2**0.558)


def test_the_papers_fit_passes_through_its_dense_base():
    assert hyperp_fitted_learning_rate(10.4e9) == pytest.approx(0.015, rel=0.01)
    ratio = hyperp_fitted_learning_rate(166e9) / hyperp_fitted_learning_rate(10.4e9)
    assert hyperp_learning_rate(1.0, tokens=166e9) == pytest.approx(ratio)


@given(depth=st.integers(1, 200))
def test_the_branches_of_all_layers_add_up_to_one(depth):
    assert 2 * depth * hyperp_residual_scale(depth) ** 2 == pytest.approx(1.0)


@pytest.mark.parametrize("value", [0, -8, math.inf, math.nan, True, "8"])
def test_sizes_are_positive_numbers(value):
    with pytest.raises(ValueError, match=r"depth=.* must be a positive, finite number"):
        hyperp_learning_rate(0.01, depth=value)
    with pytest.raises(ValueError, match=r"depth=.* must be a positive, finite number"):
        hyperp_residual_scale(value)
    with pytest.raises(ValueError, match=r"tokens=.* must be a positive, finite number"):
        hyperp_fitted_learning_rate(value)
    with pytest.raises(ValueError, match=r"base=.* must be a positive, finite number"):
        hyperp_learning_rate(value)
