"""Skipped steps: what is counted, what stays, and that the guards recover."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.transforms import global_norm

PARAMS = {"w": jnp.zeros(1), "b": jnp.zeros(1)}
INNER = optkit.momentum(0.5)


def feed(tx, sizes, **extras):
    """Runs gradients of the given norms; returns (update, state) of each step."""
    update = jax.jit(tx.update)
    state, out = tx.init(PARAMS), []
    for t, size in enumerate(sizes):
        grads = {"w": jnp.full(1, size, jnp.float32), "b": jnp.zeros(1)}
        u, state = update(grads, state, PARAMS, **{k: v[t] for k, v in extras.items()})
        out.append((float(u["w"][0]), state))
    return out


BAD = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("row", [1, 40])
def test_nonfinite_steps_are_skipped_and_a_row_of_any_length_ends(bad, row):
    out = feed(optkit.skip_nonfinite(INNER), [1.0] + [bad] * row + [1.0])
    states = [state for _, state in out]
    assert [u for u, _ in out[1:-1]] == [0.0] * row
    chex.assert_trees_all_equal(states[-2].inner, states[0].inner)
    assert (int(states[-2].skipped), int(states[-2].consecutive)) == (row, row)
    assert (int(states[-1].skipped), int(states[-1].consecutive)) == (row, 0)
    assert out[-1][0] == 0.75


def test_a_nonfinite_loss_or_result_is_skipped_too():
    out = feed(optkit.skip_nonfinite(INNER), [1.0] * 3, value=[1.0, np.nan, 1.0])
    assert [int(state.skipped) for _, state in out] == [0, 1, 1]
    assert [u for u, _ in out] == [0.5, 0.0, 0.75]
    overflow = optax.stateless(lambda u, p: jax.tree.map(lambda x: x * 1e30, u))
    out = feed(optkit.skip_nonfinite(overflow), [1.0, 1e20])
    assert [int(state.skipped) for _, state in out] == [0, 1]


def spiky(**options):
    return optkit.skip_spikes(INNER, **{"warmup": 4, "window": 8, "factor": 3.0, **options})


CALM = [1.0, 1.1, 0.9, 1.05, 0.95]


def test_a_spike_is_skipped_and_leaves_no_trace():
    out = feed(spiky(), [*CALM, 9.0, 1.0])
    (_, before), (u, at), (_, after) = out[-3:]
    assert u == 0.0 and (int(at.skipped), int(at.consecutive)) == (1, 1)
    chex.assert_trees_all_equal(
        (at.inner, at.history, at.accepted), (before.inner, before.history, before.accepted)
    )
    assert (int(after.skipped), int(after.consecutive)) == (1, 0)
    clean = feed(spiky(), [*CALM, 1.0])[-1][1]
    chex.assert_trees_all_equal((after.inner, after.history), (clean.inner, clean.history))


def test_the_threshold_is_mean_plus_factor_deviations_of_the_window():
    mean, deviation = np.mean(CALM), np.std(CALM)
    for shift, skipped in ((2.9, 0), (3.1, 1)):
        out = feed(spiky(), [*CALM, mean + shift * deviation])
        assert int(out[-1][1].skipped) == skipped
    # Five old values leave the window of eight: the quiet ones alone decide.
    quiet = [0.100, 0.101, 0.102, 0.103, 0.104, 0.105, 0.106, 0.107]
    assert int(feed(spiky(), [*CALM, *quiet, 0.2])[-1][1].skipped) == 1


def test_no_spike_is_seen_before_warmup():
    assert int(feed(spiky(), [1.0, 1.1, 100.0])[-1][1].skipped) == 0


def test_small_and_falling_norms_pass():
    assert int(feed(spiky(), [*CALM, 0.5, 0.01, 0.0])[-1][1].skipped) == 0


def test_a_new_level_is_believed_after_the_stated_number_of_skips():
    out = feed(
        spiky(max_consecutive=3), [*CALM, *[50.0, 51.0, 52.0, 53.0, 51.0, 52.0, 50.0, 900.0]]
    )
    taken = [u != 0.0 for u, _ in out]
    assert taken == [True] * 5 + [False] * 3 + [True] * 4 + [False]
    assert int(out[8][1].accepted) == 1 and float(out[8][1].history[0]) == 53.0


@pytest.mark.parametrize("bad", BAD)
def test_nonfinite_is_never_believed(bad):
    out = feed(spiky(max_consecutive=3), [*CALM, *[bad] * 9, 1.0])
    assert all(u == 0.0 for u, _ in out[5:-1]) and out[-1][0] != 0.0
    assert np.all(np.isfinite(out[-1][1].history)) and int(out[-1][1].skipped) == 9


def test_the_loss_can_be_watched_but_the_gradient_still_has_to_be_finite():
    tx = spiky(monitor="value")
    values = jnp.array([*CALM, 9.0, 1.0, 1.0])
    out = feed(tx, [1.0] * 7 + [np.nan], value=values)
    assert [int(state.skipped) for _, state in out] == [0] * 5 + [1, 1, 2]
    assert np.isfinite(out[-1][1].inner.momentum["w"]).all()
    with pytest.raises(ValueError, match=r"needs tx.update\(..., value=loss\)"):
        feed(tx, [1.0])


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_spikes_are_told_at_any_scale(scale):
    out = feed(spiky(), [scale * x for x in [*CALM, 9.0, 1.0]])
    assert [int(state.skipped) for _, state in out[-2:]] == [1, 1]


def test_impossible_settings_are_refused():
    for options in (
        {"window": 1},
        {"warmup": 9},
        {"factor": -1.0},
        {"max_consecutive": 0},
        {"monitor": "loss"},
        {"window": 2.5},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            spiky(**options)
    with pytest.raises(TypeError, match=r"static_args=\('window',\)"):
        spiky(window=jnp.array(8))


def test_global_norm():
    tree = {"a": jnp.full((2, 2), 3e25), "b": jnp.full(5, 4e25 / 5**0.5 * 1.0), "c": jnp.zeros(0)}
    assert float(global_norm(tree)) == pytest.approx(np.sqrt(36 + 16) * 1e25, rel=1e-6)
    assert float(global_norm({"h": jnp.full(4, 6e4, jnp.float16)})) == pytest.approx(12e4, rel=1e-3)
    assert float(global_norm({})) == 0.0
    assert not np.isfinite(global_norm({"a": jnp.array([1.0, jnp.nan])}))
