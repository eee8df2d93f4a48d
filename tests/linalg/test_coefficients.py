import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import (
    COEFFICIENTS,
    CoefficientSet,
    as_coefficient_set,
    get_coefficients,
    polar_express_coefficients,
)
from tests.linalg import oracle

# Image of [low, 1] under the composed polynomial, low = 1e-3, 5e-3, 1e-2, 1e-1; slope at zero.
IMAGES = {
    ("jordan", 5): ((0.471, 1.202), (0.682, 1.154), (0.682, 1.134), (0.682, 1.134), 484.9),
    ("quintic_you", 5): ((0.475, 1.145), (0.978, 1.112), (0.978, 1.032), (0.978, 1.032), 492.7),
    ("polar_express", 5): (*[(0.876, 1.124)] * 4, 1026.1),
    ("polar_express_1p02", 5): (*[(0.859, 1.141)] * 4, 989.5),
    ("polar_express_1p05", 5): ((0.729, 1.124), *[(0.846, 1.124)] * 3, 803.9),
    ("polar_express_1p01", 8): (*[(1.0, 1.0)] * 4, 6363.0),
    ("cans", 5): (*[(0.884, 1.120)] * 4, 1048.9),
    ("deepseek_v4", 10): (*[(1.0, 1.001)] * 4, 79263.0),
    ("cubic5", 5): ((0.119, 1.3), (0.574, 1.3), (0.774, 1.3), (0.774, 1.3), 119.3),
    ("aol_emerging", 4): (*[(-1.084, 1.084)] * 4, 104.1),
}
LOWS = (1e-3, 5e-3, 1e-2, 1e-1)


@pytest.mark.parametrize(("name", "steps"), IMAGES)
def test_image_of_the_singular_values(name, steps):
    *bounds, slope = IMAGES[name, steps]
    rows = get_coefficients(name, steps)
    np.testing.assert_allclose(np.prod([row[0] for row in rows]), slope, rtol=5e-4)
    for low, (least, most) in zip(LOWS, bounds, strict=True):
        grid = np.concatenate([np.linspace(low, 1, 40_001), np.geomspace(low, 1, 40_001)])
        image = oracle.polynomial(rows, grid)
        np.testing.assert_allclose([image.min(), image.max()], [least, most], atol=6e-4)


def test_own_number_of_steps():
    for entry in COEFFICIENTS.values():
        assert len(entry.expand()) == entry.steps
        assert entry.source
        assert all(isinstance(value, float) for row in entry.rows for value in row)


def test_generator_gives_the_polar_express_table():
    table = np.array(COEFFICIENTS["polar_express"].rows)
    rows = np.array(polar_express_coefficients(1e-3, cushion=0.02407327424182761, steps=9))
    np.testing.assert_allclose(rows[:6], table[:6], rtol=1e-14)
    # The seventh design interval is so short that the system has lost half its digits.
    np.testing.assert_allclose(rows[6], table[6], rtol=1e-9)
    np.testing.assert_allclose(rows[7:], table[7:], rtol=1e-14)


def test_generator_gives_the_table_with_safety():
    rows = polar_express_coefficients(1e-3, cushion=0.02, safety=0.02, steps=5)
    np.testing.assert_allclose(rows, COEFFICIENTS["polar_express_1p02"].rows, rtol=1e-14)
    folded = polar_express_coefficients(1e-3, cushion=0.02, steps=5)
    scale = np.array([1.02, 1.02**3, 1.02**5])
    assert np.max(np.abs(np.array(folded) / scale - np.array(rows))) > 1e-2


def test_folded_table_is_derived():
    rows = COEFFICIENTS["polar_express_1p05"].rows
    first = COEFFICIENTS["polar_express"].rows[0]
    assert len(rows) == 5
    np.testing.assert_allclose(rows[0], np.array(first) / [1.05, 1.05**3, 1.05**5], rtol=1e-15)


@given(st.floats(1e-4, 0.9), st.integers(1, 5), st.floats(0.5, 2.0))
def test_generated_steps_close_in_on_one(lower, steps, upper):
    rows = polar_express_coefficients(lower * upper, upper=upper, steps=steps)
    low = polar_express_coefficients(lower * upper, upper=upper, steps=steps + 1)
    grid = np.linspace(lower * upper, upper, 2001)
    error = np.max(np.abs(oracle.polynomial(rows, grid) - 1))
    assert error < 1
    assert np.max(np.abs(oracle.polynomial(low, grid) - 1)) < error + 1e-9


@pytest.mark.parametrize(
    "bad",
    [
        {"lower": 0.0},
        {"lower": 2.0},
        {"lower": 0.1, "cushion": 1.0},
        {"lower": 0.1, "safety": -0.1},
        {"lower": 0.1, "steps": -1},
    ],
)
def test_generator_refuses(bad):
    with pytest.raises(ValueError, match="need 0"):
        polar_express_coefficients(**bad)


def test_repeat_policies():
    one, two = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    cycle = CoefficientSet("x", (one, two), "cycle", 2)
    assert cycle.expand(5) == (one, two, one, two, one)
    last = CoefficientSet("x", (one, two), "last", 2)
    assert last.expand(4) == (one, two, two, two)
    assert last.expand(1) == (one,)
    assert last.expand(0) == ()
    with pytest.raises(ValueError, match=r"has 2 rows .* 3 steps"):
        CoefficientSet("x", (one, two), "none", 2).expand(3)
    with pytest.raises(ValueError, match="steps must be >= 0, got -1"):
        cycle.expand(-1)


def test_specifications():
    assert get_coefficients([(1, 2, 3)], 2) == ((1.0, 2.0, 3.0),) * 2
    assert get_coefficients([(1, 2, 3), [4, 5, 6]]) == ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    assert as_coefficient_set("cans") is as_coefficient_set(COEFFICIENTS["cans"])
    with pytest.raises(ValueError, match="has 2 rows"):
        get_coefficients([(1, 2, 3), (4, 5, 6)], 3)
    with pytest.raises(ValueError, match=r"unknown coefficient set 'jordn'.*jordan"):
        get_coefficients("jordn")
    with pytest.raises(ValueError, match="three finite numbers"):
        get_coefficients([(1.0, 2.0)])
    with pytest.raises(ValueError, match="three finite numbers"):
        get_coefficients([(1.0, 2.0, float("nan"))])
