"""Laws of merging adapters, and the search for a merge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.evolution import evo_merge, keep_largest, merge_lora

keep = jax.jit(keep_largest)


def slow_keep(x, alpha):
    """The rule with Python's numbers: float32 shares times sizes are exact there."""
    if alpha <= 0 or alpha >= 1:
        return x * (alpha >= 1)
    count = max(1, round(float(alpha) * x.size))
    threshold = np.sort(np.abs(x), axis=None)[-count]
    return np.where(np.abs(x) >= threshold, x, 0)


@given(
    st.integers(0, 2**31),
    st.one_of(st.sampled_from([0.0, 1e-9, 0.5, 0.9, 0.7, 0.3, 1.0, 1.5, -1.0]), st.floats(0, 1)),
)
def test_the_largest_are_kept(seed, alpha):
    # Halves of small integers: many ties.
    x = np.random.default_rng(seed).integers(-6, 7, (3, 5)).astype(np.float32) / 2
    alpha = np.float32(alpha)
    np.testing.assert_array_equal(keep(x, alpha), slow_keep(x, alpha))


def test_counts_are_rounded_as_the_exact_product():
    sizes = np.arange(1, 16) * 0.1
    x = np.arange(1.0, 16.0, dtype=np.float32)
    for share in np.float32(sizes[sizes < 1]):
        assert np.count_nonzero(keep(x, share)) == max(1, round(float(share) * 15))


def adapters(count, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return [{"q": {"lora_A": draw(2, 6), "lora_B": draw(5, 2)}, "a": draw(3)} for _ in range(count)]


@given(st.integers(0, 2**31))
def test_factors_are_summed_apart_and_only_a_is_thinned(seed):
    rng = np.random.default_rng(seed)
    alpha, beta = rng.random(3).astype(np.float32), rng.uniform(-1.5, 1.5, 3).astype(np.float32)
    given_ = adapters(3)
    merged = merge(alpha, beta)
    expected = sum(
        w * slow_keep(x["q"]["lora_A"], s) for x, s, w in zip(given_, alpha, beta, strict=True)
    )
    np.testing.assert_allclose(merged["q"]["lora_A"], expected, atol=1e-6)
    summed = sum(w * x["q"]["lora_B"] for x, w in zip(given_, beta, strict=True))
    np.testing.assert_allclose(merged["q"]["lora_B"], summed, atol=1e-6)


@jax.jit
def merge(alpha, beta):
    return merge_lora(alpha, beta, adapters(3))


def test_a_population_of_merges_is_that_of_each():
    rng = np.random.default_rng(1)
    alpha, beta = (rng.random((4, 3)).astype(np.float32) for _ in range(2))
    whole = jax.vmap(merge)(alpha, beta)
    for i in range(4):
        one = merge(alpha[i], beta[i])
        for got, want in zip(jax.tree.leaves(whole), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(got[i], want, atol=1e-6)


def task(seed):
    """Deltas of linear maps: two adapters of the task, two of others; the loss on the task."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    b, inputs = draw(6, 2), draw(64, 8)
    halves = [draw(2, 8), draw(2, 8)]
    made = [{"a": half, "b": b} for half in halves]
    # The others share the outputs that matter, and would spoil them.
    made += [{"a": 2 * draw(2, 8), "b": 0.3 * draw(6, 2)} for _ in range(2)]
    target = inputs @ (b @ sum(halves)).T

    def loss(lora):
        return jnp.mean((inputs @ (lora["b"] @ lora["a"]).T - target) ** 2)

    return made, loss, float(np.mean(target**2))


@pytest.mark.sweep
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_irrelevant_adapters_get_no_weight(seed):
    made, loss, size = task(seed)
    found = jax.jit(lambda key: evo_merge(loss, made, evaluations=(200, 800), key=key))(
        jax.random.key(seed)
    )
    beta = np.asarray(found.beta)
    uniform = float(loss(merge_lora(jnp.ones(4), jnp.full(4, 0.25), made)))
    assert float(found.loss) < 0.1 * uniform < size
    assert np.abs(beta[2:]).max() < 0.25 * np.abs(beta[:2]).min()
    assert np.all((found.alpha >= 0) & (found.alpha <= 1)) and np.all(np.abs(beta) <= 1.5)


def test_one_best_over_both_stages_compares_what_cannot_be_compared():
    made, _, _ = task(0)
    # What stage 1 starts with pays 0.05 for alpha = 1; a loss that is all but flat in beta and
    # free of penalties there lets stage 2 win by paying for small weights alone.
    alike = lambda lora: 1e-6 * jnp.sum(lora["b"] ** 2)  # noqa: E731
    options = {"evaluations": (20, 60), "penalty": (0.0, 0.5)}
    uniform = np.full(4, 0.25, np.float32)
    ours = evo_merge(alike, made, **options)
    theirs = evo_merge(alike, made, compare="reference", **options)
    assert float(ours.loss) <= float(theirs.loss)
    np.testing.assert_allclose(theirs.beta, uniform)
    assert np.abs(ours.beta - uniform).max() > 0.01


def test_a_stage_never_ends_worse_than_it_began():
    made, loss, _ = task(1)
    found = evo_merge(loss, made, evaluations=(40, 40))
    start = float(loss(merge_lora(jnp.ones(4), jnp.full(4, 0.25), made)))
    for history in found.history:
        assert np.all(np.diff(history) <= 0)
    np.testing.assert_allclose(found.history[1][-1], found.loss, rtol=1e-5)
    assert float(found.loss) <= float(found.history[0][-1]) <= start * (1 + 1e-6)


def test_lost_losses_are_not_taken():
    made, loss, _ = task(1)
    edge = 0.25 * sum(adapter["b"][0, 0] for adapter in made)
    holed = lambda lora: jnp.where(lora["b"][0, 0] > edge + 1e-3, jnp.nan, loss(lora))  # noqa: E731
    found = evo_merge(holed, made, evaluations=(40, 40))
    assert float(found.loss) < float(found.history[0][-1]) < np.inf


def test_wrong_use_says_what_to_do():
    with pytest.raises(ValueError, match="\\(3,\\), and there are 2 adapters"):
        merge_lora(jnp.ones(3), jnp.ones(3), adapters(2))
    with pytest.raises(ValueError, match="'scale' is neither factor"):
        merge_lora(jnp.ones(1), jnp.ones(1), [{"scale": jnp.ones(3)}])
    with pytest.raises(ValueError, match="no adapters"):
        merge_lora(jnp.ones(0), jnp.ones(0), [])
    other = [*adapters(1), {"q": {"lora_A": jnp.ones((2, 6))}, "a": jnp.ones(3)}]
    with pytest.raises(ValueError, match="q/lora_B"):
        merge_lora(jnp.ones(2), jnp.ones(2), other)
