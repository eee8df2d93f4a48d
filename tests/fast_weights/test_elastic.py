"""Elastic test-time training: the laws of its pull, and its statistics against a slow account."""

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optkit.fast_weights import FastWeights, elastic_init, elastic_step
from optkit.fast_weights.elastic import ElasticState

SEEDS = st.integers(0, 2**32 - 1)
SHARES = st.floats(0.0, 1.0)


def draw(seed, batch=()):
    random = np.random.default_rng(seed)
    shapes = ((4, 3), (2, 4), (4, 3))
    return FastWeights(*[random.standard_normal((*batch, *s)).astype(np.float32) for s in shapes])


def same(got, want, rtol=0.0, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, want)


OLD, NEW = draw(0), draw(1)


def filled(home, value):
    return ElasticState(home, jax.tree.map(lambda w: np.full(w.shape, value, np.float32), home))


step = jax.jit(elastic_step, static_argnames=("statistic", "anchor"))
GLOBAL = functools.partial(step, anchor="global")


@given(SEEDS, st.floats(0.0, 1e3))
def test_without_strength_or_importance_nothing_moves(seed, number):
    new, home = draw(seed), draw(seed + 1)
    same(GLOBAL(OLD, new, filled(home, number), strength=0.0)[0], new)
    same(GLOBAL(OLD, new, filled(home, 0.0), strength=number)[0], new)
    same(elastic_init(OLD).importance, filled(OLD, 0.0).importance)


@given(SEEDS, SHARES, SHARES)
def test_a_share_of_the_way_ends_in_between_and_full_strength_at_the_anchor(seed, a, b):
    """The share is the product of strength and importance."""
    new, home = draw(seed), draw(seed + 1)
    weights, _ = GLOBAL(OLD, new, filled(home, a), strength=b)
    for w, start, end in zip(weights, new, home, strict=True):
        room = 1e-6 * np.maximum(np.abs(start), np.abs(end))
        assert np.all((np.minimum(start, end) - room <= w) & (w <= np.maximum(start, end) + room))
        np.testing.assert_allclose(w, start + a * b * (end - start), rtol=1e-5, atol=1e-6)
    weights, state = GLOBAL(OLD, new, filled(home, 1.0), strength=1.0)
    same((weights, state.anchor), (home, home))


@pytest.mark.parametrize("statistic", ["ewc", "mas", "si"])
@pytest.mark.parametrize("anchor", ["global", "streaming", "streaming_ema"])
@settings(max_examples=5)
@given(SEEDS, SHARES, SHARES, SHARES)
def test_chunks_follow_the_slow_account(statistic, anchor, seed, strength, a, b):
    state = elastic_init(draw(seed, (5,)), batch_axes=1)
    home, f = (np.float64(x.w1) for x in state)
    before = draw(seed, (5,))
    for chunk in range(3):
        after = draw(seed + 1 + chunk, (5,))
        t, t1 = np.float64(before.w1), np.float64(after.w1)
        want = t1 - strength * f * (t1 - home)
        s = (t1 - t).mean(0)
        phi = {"ewc": s**2, "mas": np.abs(s), "si": np.abs(s * (t1 - home).mean(0))}[statistic]
        f = a * f + (1 - a) * phi
        home = {"global": home, "streaming": want, "streaming_ema": b * home + (1 - b) * want}[
            anchor
        ]
        numbers = {"strength": strength, "decay": a, "anchor_decay": b}
        before, state = step(before, after, state, **numbers, statistic=statistic, anchor=anchor)
        same((before.w1, *(x.w1 for x in state)), (want, home, f), rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="statistic='fisher' is not one of"):
        elastic_step(OLD, NEW, elastic_init(OLD), statistic="fisher")
    with pytest.raises(ValueError, match="anchor='ema' is not one of"):
        elastic_step(OLD, NEW, elastic_init(OLD), anchor="ema")
    with pytest.raises(ValueError, match=r"decay=1.5 is outside \[0, 1.0\]"):
        elastic_step(OLD, NEW, elastic_init(OLD), decay=1.5)
    with pytest.raises(ValueError, match="make the state by elastic_init"):
        elastic_step(OLD, NEW, elastic_init(draw(0, (2,))))
    with pytest.raises(ValueError, match="do not have 3 leading axes"):
        elastic_init(OLD, batch_axes=3)
