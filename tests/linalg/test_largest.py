"""Exactly k of many: against a stable sort in NumPy, with ties, infinities and NaN."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.linalg import largest_in, largest_of, largest_of_each

SHAPES = ((4, 5), (7,), (2, 0), ())
SIZES = [int(np.prod(shape)) for shape in SHAPES]
together = jax.jit(largest_of, static_argnames="smallest")
each = jax.jit(largest_of_each, static_argnames="smallest")
along = jax.jit(largest_in, static_argnames=("count", "smallest"))


def oracle(x, count, eligible=None, smallest=False):
    """The first ``count`` in a stable order of magnitude, NaN above all."""
    size = np.where(np.isnan(x), np.inf, np.abs(np.float64(x)))
    order = np.lexsort((-np.isnan(x).astype(int), -size))
    order = order[::-1] if smallest else order
    if smallest:
        order = np.lexsort((np.isnan(x).astype(int), size))
    if eligible is not None:
        order = [i for i in order if eligible[i]]
    out = np.zeros(x.size, bool)
    out[np.asarray(order[:count], int)] = True
    return out


def draw(seed, few):
    rng = np.random.default_rng(seed)
    if few:  # few values, so that most cutoffs are ties
        return [rng.integers(-2, 3, shape).astype(np.float32) for shape in SHAPES]
    scale = 10.0 ** rng.integers(-30, 30)
    return [np.float32(scale * rng.standard_normal(shape)) for shape in SHAPES]


def flat(parts):
    return np.concatenate([np.asarray(part).reshape(-1) for part in parts])


@given(st.integers(0, 9999), st.booleans(), st.booleans(), st.integers(0, sum(SIZES)))
def test_of_all_arrays_together(seed, few, smallest, count):
    xs = draw(seed, few)
    got = flat(together(xs, count, smallest=smallest))
    np.testing.assert_array_equal(got, oracle(flat(xs), count, smallest=smallest))
    assert got.sum() == count


@given(st.integers(0, 9999), st.booleans(), st.integers(0, sum(SIZES)))
def test_what_is_not_eligible_is_not_chosen(seed, few, count):
    xs = draw(seed, few)
    may = [np.random.default_rng(seed + 1).random(shape) < 0.5 for shape in SHAPES]
    got = flat(together(xs, count, may))
    np.testing.assert_array_equal(got, oracle(flat(xs), count, flat(may)))
    assert got.sum() == min(count, flat(may).sum())


@given(st.integers(0, 9999), st.booleans(), st.booleans(), st.integers(0, 20), st.integers(0, 7))
def test_of_each_array(seed, few, smallest, first, second):
    xs, counts = draw(seed, few), [first, second, 0, 1]
    for x, k, got in zip(xs, counts, each(xs, counts, smallest=smallest), strict=True):
        want = oracle(x.reshape(-1), k, smallest=smallest)
        np.testing.assert_array_equal(np.asarray(got).reshape(-1), want)


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_along_the_last_axis(few, smallest):
    x = draw(0, few)[0]
    got = along(x, 2, smallest=smallest)
    np.testing.assert_array_equal(got, [oracle(row, 2, smallest=smallest) for row in x])


def test_nan_is_larger_than_infinity():
    x = np.array([1.0, np.inf, np.nan, -np.inf, 0.0], np.float32)
    for count in range(6):
        np.testing.assert_array_equal(together([x], count)[0], oracle(x, count))


def test_a_batch_is_its_members():
    x = np.stack([draw(seed, True)[0] for seed in range(3)])
    got = jax.jit(jax.vmap(lambda x: largest_of([x], 6)[0]))(x)
    for one, own in zip(got, x, strict=True):
        np.testing.assert_array_equal(np.asarray(one).reshape(-1), oracle(own.reshape(-1), 6))


def test_sharded_arrays_stay_where_they_are():
    """The cutoff is a matter of sums: nothing is gathered."""
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None))
    x = np.random.default_rng(0).integers(-3, 4, (8, 5)).astype(np.float32)
    compiled = jax.jit(lambda x: largest_of([x], 9)[0]).lower(jax.device_put(x, split)).compile()
    assert "all-gather" not in compiled.as_text()
    got = compiled(jax.device_put(x, split))
    np.testing.assert_array_equal(np.asarray(got).reshape(-1), oracle(x.reshape(-1), 9))
