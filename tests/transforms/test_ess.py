"""The effective sample size, its bounds, and the steps that it shortens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.transforms import effective_share, opob_baseline

SIZE = 6
SHARE = jax.jit(effective_share)


def share(weights):
    return weights.sum() ** 2 / (weights**2).sum() / weights.size


@given(seed=st.integers(0, 100), spread=st.floats(0.0, 5.0), shift=st.floats(-2e3, 2e3))
def test_it_is_the_textbooks_and_does_not_see_a_common_factor(seed, spread, shift):
    logs = np.float32(spread * np.random.default_rng(seed).standard_normal(SIZE))
    want = share(np.exp(np.float64(logs)))
    assert SHARE(logs) == pytest.approx(want, rel=1e-4)
    shifted = np.float32(logs + shift)
    exact = np.float64(shifted)
    assert SHARE(shifted) == pytest.approx(share(np.exp(exact - exact.max())), rel=1e-3)
    assert 1 / SIZE - 1e-6 <= SHARE(logs) <= 1 + 1e-6


@pytest.mark.parametrize("level", [-1e4, 0.0, 500.0])
def test_equal_weights_are_all_effective_and_one_alone_counts_once(level):
    assert SHARE(jnp.full(SIZE, level)) == pytest.approx(1.0, rel=1e-6)
    alone = jnp.full(SIZE, level - 200.0).at[2].set(level)
    assert SHARE(alone) == pytest.approx(1 / SIZE, rel=1e-6)
    half = jnp.full(SIZE, -jnp.inf).at[:3].set(level)
    assert SHARE(half) == pytest.approx(0.5, rel=1e-6)
    assert np.isnan(SHARE(jnp.full(SIZE, -jnp.inf)))


@pytest.mark.parametrize(("rule", "power"), [("sqrt", 0.5), ("linear", 1.0)])
@pytest.mark.parametrize("base", [1.0, 0.55, 0.25])
def test_updates_and_decay_shrink_together_and_moments_do_not(rule, power, base):
    inner = optkit.adamw(0.1, weight_decay=0.3)
    tx = optax.chain(inner, optkit.scale_by_ess(base, rule=rule))
    p, g = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.3, 0.1])}
    logs = jnp.log(jnp.array([1.0, 1.0, 2.0, 4.0]))
    want, held = inner.update(g, inner.init(p), p)
    got, state = tx.update(g, tx.init(p), p, log_weights=logs)
    ratio = 64 / 22 / 4
    s = min(1.0, ratio / base) ** power
    np.testing.assert_allclose(got["w"], s * np.asarray(want["w"]), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state[0], held)
    assert float(state[1].ratio) == pytest.approx(ratio, rel=1e-5)


def test_stale_samples_move_the_policy_less_far():
    """A bandit whose samples come from an older policy: what a step may be wrong by, shrinks."""
    rng = np.random.default_rng(0)
    rewards = jnp.array([1.0, 0.0, 0.0, 0.0])

    @jax.jit
    def spread(stale):
        logits = jnp.array([stale, 0.0, -stale, -stale])  # the learner; samplers are uniform
        log_p = jax.nn.log_softmax(logits)

        def estimate(actions):
            logs = log_p[actions] + jnp.log(4.0)
            w = jnp.exp(logs)

            def value(x):
                each = jax.nn.log_softmax(x)[actions] * jax.lax.stop_gradient(w * rewards[actions])
                return -jnp.mean(each)

            out = []
            for tx in (optkit.scale_by_ess(rule="linear"), optax.with_extra_args_support(IDENTITY)):
                out.append(tx.update(jax.grad(value)(logits), tx.init(logits), log_weights=logs)[0])
            return jnp.stack(out)

        found = jax.vmap(estimate)(ACTIONS)
        return jnp.sqrt(jnp.sum(jnp.var(found, axis=0), axis=-1))

    IDENTITY = optax.identity()
    ACTIONS = jnp.asarray(rng.integers(0, 4, (400, 8)))
    left = [float(np.divide(*spread(stale))) for stale in (0.0, 0.75, 1.5)]
    assert left[0] == pytest.approx(1.0, rel=1e-5)
    assert left[2] < left[1] < 0.95


def test_missing_weights_raise_unless_they_may_be_missing():
    u = {"w": jnp.ones(2)}
    tx = optkit.scale_by_ess()
    with pytest.raises(ValueError, match=r"log_weights=.*required=False"):
        tx.update(u, tx.init(u))
    with pytest.raises(ValueError, match="rule='cubic'"):
        optkit.scale_by_ess(rule="cubic")
    with pytest.raises(ValueError, match=r"base=0\.0 is below 1e-08"):
        optkit.scale_by_ess(0.0)


@given(seed=st.integers(0, 50), shift=st.sampled_from([-500.0, 0.0, 500.0]))
def test_the_baseline_makes_the_estimate_vary_least(seed, shift):
    logs, rewards, scores = np.float32(np.random.default_rng(seed).standard_normal((3, SIZE)))
    found = float(BASELINE(logs + np.float32(shift), rewards, scores**2))

    def spread(b):
        w = np.exp(np.float64(logs))
        return np.sum((w * scores * (rewards - b)) ** 2)

    assert all(spread(found) < spread(found + step) for step in (-0.01, 0.01))


BASELINE = jax.jit(opob_baseline)
