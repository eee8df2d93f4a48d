"""Elastic test-time training: the laws of its pull, and its statistics against a slow account."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optkit.fast_weights import FastWeights, elastic_init, elastic_step
from optkit.fast_weights.elastic import ElasticState


def draw(seed, batch=()):
    random = np.random.default_rng(seed)
    shapes = ((4, 3), (2, 4), (4, 3))
    return FastWeights(*[random.standard_normal((*batch, *s)).astype(np.float32) for s in shapes])


def same(got, want, rtol=0.0, atol=0.0):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), got, want)


OLD, NEW, HOME = draw(0), draw(1), draw(2)


def filled(value):
    return ElasticState(HOME, jax.tree.map(lambda w: jnp.full(w.shape, value), HOME))


def test_without_strength_or_importance_nothing_moves():
    same(elastic_step(OLD, NEW, filled(0.7), strength=0.0)[0], NEW)
    same(elastic_step(OLD, NEW, elastic_init(OLD), strength=9.0)[0], NEW)


def test_full_strength_returns_to_the_anchor():
    weights, state = elastic_step(OLD, NEW, filled(1.0), strength=1.0, anchor="global")
    same((weights, state.anchor), (HOME, HOME))


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_share_of_the_way_ends_in_between(share):
    weights, _ = elastic_step(OLD, NEW, filled(share), strength=1.0)
    for w, new, home in zip(weights, NEW, HOME, strict=True):
        assert np.all((w - new) * (w - home) <= 0)
        np.testing.assert_allclose(w, new + share * (home - new), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("statistic", ["ewc", "mas", "si"])
@pytest.mark.parametrize("anchor", ["global", "streaming", "streaming_ema"])
def test_chunks_follow_the_slow_account(statistic, anchor):
    options = {"statistic": statistic, "anchor": anchor}
    state = elastic_init(draw(9, (5,)), batch_axes=1)
    home, f = (np.float64(x.w1) for x in state)
    step = jax.jit(lambda *args: elastic_step(*args, strength=0.4, decay=0.3, **options))
    before = draw(9, (5,))
    for chunk in range(3):
        after = draw(10 + chunk, (5,))
        t, t1 = np.float64(before.w1), np.float64(after.w1)
        want = t1 - 0.4 * f * (t1 - home)
        s = (t1 - t).mean(0)
        phi = {"ewc": s**2, "mas": np.abs(s), "si": np.abs(s * (t1 - home).mean(0))}[statistic]
        f = 0.3 * f + 0.7 * phi
        home = {"global": home, "streaming": want, "streaming_ema": 0.5 * home + 0.5 * want}[anchor]
        before, state = step(before, after, state)
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
