"""Batches that are drawn as accountants assume."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.privacy import PoissonBatches


def test_each_example_is_drawn_by_itself() -> None:
    batches, steps = PoissonBatches(50, 5, seed=1), 4000
    seen = np.zeros((steps, 50))
    for t in range(steps):
        drawn = batches.batch(t)
        inside = drawn.indices[drawn.mask]
        assert len(set(inside.tolist())) == len(inside)
        seen[t, inside] = 1.0
    q, error = 0.1, 4.5 * math.sqrt(0.1 * 0.9 / steps)
    assert np.abs(seen.mean(0) - q).max() < error
    # As many as independent draws are, in mean and spread, and not always the same number.
    sizes = seen.sum(1)
    assert np.var(sizes) == pytest.approx(50 * q * (1 - q), rel=4.5 * math.sqrt(2.0 / steps))
    pairs = np.cov(seen.T)[np.triu_indices(50, 1)]
    assert abs(pairs.mean()) < 4.5 * q * (1 - q) / math.sqrt(steps * len(pairs))
    assert np.corrcoef(sizes[1:], sizes[:-1])[0, 1] < 4.5 / math.sqrt(steps)


def test_a_step_is_drawn_from_seed_and_number_alone() -> None:
    one, two = PoissonBatches(100, 8, seed=3), PoissonBatches(100, 8, seed=4)
    first = one.batch(7)
    one.batch(8)
    np.testing.assert_array_equal(first.indices, one.batch(7).indices)
    assert not np.array_equal(first.indices, one.batch(8).indices)
    assert not np.array_equal(first.indices, two.batch(7).indices)


@given(st.integers(2, 60), st.data())
def test_the_bound_on_overflow_is_one(examples: int, data: st.DataObject) -> None:
    expected = data.draw(st.integers(1, examples))
    size = data.draw(st.integers(1, examples))
    q = expected / examples
    tail = sum(
        math.comb(examples, k) * q**k * (1 - q) ** (examples - k)
        for k in range(size + 1, examples + 1)
    )
    batches = PoissonBatches(examples, expected, seed=0)
    assert tail <= batches.overflow(size) * (1 + 1e-9)
    assert batches.overflow(batches.size) <= 1e-12 and batches.size <= examples


def test_a_batch_that_does_not_fit_is_not_cut() -> None:
    batches = PoissonBatches(100, 10, seed=0, size=10)
    fitting, refused = 0, 0
    for t in range(50):
        try:
            fitting += batches.batch(t).mask.sum() <= 10
        except ValueError as error:
            assert "more than size=10 has places for" in str(error)
            refused += 1
    assert fitting + refused == 50 and min(fitting, refused) > 5


def test_arrays_of_a_step() -> None:
    batches = PoissonBatches(20, 4, seed=0)
    data = {"x": np.arange(60.0).reshape(20, 3), "y": np.arange(20)}
    taken, mask = batches.take(2, data)
    drawn = batches.batch(2)
    np.testing.assert_array_equal(taken["y"][mask], drawn.indices[drawn.mask])
    np.testing.assert_array_equal(taken["x"], data["x"][drawn.indices])
    assert taken["x"].shape == (batches.size, 3)
    with pytest.raises(ValueError, match="20 examples"):
        batches.take(0, {"x": np.zeros(19)})


def test_all_examples_and_wrong_use() -> None:
    assert PoissonBatches(5, 5, seed=0).batch(0).mask.all()
    for arguments, said in (
        ((5, 6), "expected_batch=6 is outside"),
        ((5, 0), "expected_batch=0 must be above 0"),
        ((0, 1), "examples=0"),
    ):
        with pytest.raises(ValueError, match=said):
            PoissonBatches(*arguments, seed=0)
    with pytest.raises(ValueError, match="size=3"):
        PoissonBatches(100, 10, seed=0, size=3)
    batches = PoissonBatches(100, 10, seed=0)
    third = batches.batch(jax.numpy.int32(3))  # as a state has it
    np.testing.assert_array_equal(third.indices, batches.batch(3).indices)
    with pytest.raises(ValueError, match="step=-1"):
        batches.batch(-1)
    with pytest.raises(TypeError, match="step is of type ndarray"):
        batches.take(np.ones(100), 0)  # swapped
