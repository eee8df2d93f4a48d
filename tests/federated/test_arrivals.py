"""Arrivals one after the other: momentum by weight, and compensation by a mean of squares."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from optkit import federated

SHAPES = {"b": (), "w": (2, 3)}


def drawn(seed: int, *leading: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        k: jnp.asarray(rng.standard_normal((*leading, *s)), jnp.float32) for k, s in SHAPES.items()
    }


def wide(tree: Any) -> Any:
    return jax.tree.map(np.float64, tree)


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.5, 0.9]))
def test_momentum_is_sgd_whose_rate_and_momentum_are_set_before_each_report(
    seed: int, mu: float
) -> None:
    rate, weights = 0.3, np.random.default_rng(seed).uniform(0, 1, 6)
    weights[[2, 4]] = [1.0, 0.0]
    tx = optax.chain(federated.weighted_momentum(mu), optax.sgd(rate))
    start, sent = drawn(seed), drawn(seed + 1, 6)

    def arrive(carry: Any, one: Any) -> Any:
        x, state = carry
        d, weight = one
        u, state = tx.update(d, state, x, weight=weight)
        return (optax.apply_updates(x, u), state), None

    (got, _), _ = jax.lax.scan(
        arrive, (start, tx.init(start)), (sent, jnp.asarray(weights, jnp.float32))
    )
    x, buffer = wide(start), jax.tree.map(np.zeros, SHAPES, is_leaf=lambda s: isinstance(s, tuple))
    for t, w in enumerate(weights):
        for k in x:
            scaled = w * np.float64(sent[k][t])
            buffer[k] = (mu + (1 - mu) * (1 - w)) * buffer[k] + scaled
            x[k] = x[k] - rate * w * buffer[k]
    close(got, x)


def test_full_weight_is_a_heavy_ball_and_none_changes_nothing() -> None:
    tx, ball = federated.weighted_momentum(0.9), optax.trace(0.9)
    state, held = tx.init(drawn(0)), ball.init(drawn(0))
    for seed in range(3):
        got, state = tx.update(drawn(seed), state)
        want, held = ball.update(drawn(seed), held)
        close(got, want)
    spoilt = jax.tree.map(lambda x: x * jnp.nan, drawn(0))
    for nothing in (0.0, 1.5, -1.0, np.nan):
        u, after = jax.jit(lambda w: tx.update(spoilt, state, weight=w))(jnp.float32(nothing))
        jax.tree.map(np.testing.assert_array_equal, after, state)
        assert not any(np.any(x) for x in jax.tree.leaves(u))


def test_momentum_of_16_bits_is_kept_in_float32() -> None:
    tx = federated.weighted_momentum(0.5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), drawn(0))
    u, state = tx.update(half, tx.init(half), weight=0.3)
    assert {x.dtype for x in jax.tree.leaves(u)} == {jnp.dtype("bfloat16")}
    close(state.momentum, jax.tree.map(lambda x: 0.3 * np.float64(x), half))


def squares(
    sent: Any, started: Any, now: Any, lam: float, decay: float, eps: float, here: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The recursion, one client and entry after the other."""
    s, out = np.zeros_like(now), np.array(sent)
    for i in range(len(sent)):
        if here[i]:
            s = decay * s + (1 - decay) * sent[i] ** 2
            out[i] = sent[i] + lam / np.sqrt(s + eps) * sent[i] ** 2 * (now - started[i])
    return out, s


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.95]), st.sampled_from([0.0, 2.0]))
def test_compensation_is_its_recursion(seed: int, decay: float, lam: float) -> None:
    late = federated.adaptive_dc_asgd(lam, decay=decay, eps=1e-3)
    sent, started, now = drawn(seed, 4), drawn(seed + 1, 4), drawn(seed + 2)
    here = np.random.default_rng(seed).random(4) < 0.7
    got, state = jax.jit(late.convert)(sent, started, now, late.init(now), jnp.asarray(here))
    for k in SHAPES:
        args = wide((sent[k], started[k], now[k]))
        out, s = squares(*args, lam, decay, 1e-3, here)
        close((got[k], state.mean_square[k]), (out, s))
    # What is heard in two calls is what is heard in one.
    one, held = late.convert(*jax.tree.map(lambda x: x[:1], (sent, started)), now, late.init(now))
    rest, held = late.convert(*jax.tree.map(lambda x: x[1:], (sent, started)), now, held)
    whole, want = late.convert(sent, started, now, late.init(now))
    close(jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, rest), whole)
    close(held, want)


def test_the_strength_does_not_depend_on_the_scale_of_what_is_sent() -> None:
    late = federated.adaptive_dc_asgd(2.0, eps=1e-12)
    sent, started, now = drawn(0, 3), drawn(1, 3), drawn(2)
    want, _ = late.convert(sent, started, now, late.init(now))
    small = jax.tree.map(lambda x: 0.01 * x, sent)
    got, _ = late.convert(small, started, now, late.init(now))
    close(got, jax.tree.map(lambda x: 0.01 * x, want))


def test_who_is_not_late_or_away_or_sends_nothing_is_left_alone() -> None:
    late = federated.adaptive_dc_asgd()
    now = drawn(2)
    same = optkit.replicas(now, 3)
    got, _ = late.convert(drawn(0, 3), same, now, late.init(now))
    close(got, drawn(0, 3))
    spoilt = jax.tree.map(lambda x: x.at[1].set(jnp.nan), drawn(0, 3))
    present = jnp.array([True, False, True])
    got, state = late.convert(spoilt, drawn(1, 3), now, late.init(now), present)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert np.isfinite(got["w"][2]).all() and np.isnan(got["w"][1]).all()
    zero = jax.tree.map(jnp.zeros_like, drawn(0, 3))
    close(late.convert(zero, drawn(1, 3), now, late.init(now))[0], zero)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: federated.weighted_momentum(1.0), r"momentum=1\.0 is outside \[0\.0, 1\.0\)"),
        (lambda: federated.adaptive_dc_asgd(-1.0), r"lam=-1\.0 is below 0"),
        (lambda: federated.adaptive_dc_asgd(decay=1.0), r"decay=1\.0 is outside"),
        (lambda: federated.adaptive_dc_asgd(eps=0.0), r"eps=0\.0 must be above 0"),
        (lambda: _update(weight=1.5), r"weight=1\.5 must be one number in \[0, 1\]"),
        (lambda: _update(weight=jnp.ones(2)), "give one after the other"),
        (
            lambda: _convert(present=jnp.ones(2, bool)),
            r"bool\[2\] and must be bool\[3\]",
        ),
    ],
)
def test_wrong_use_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def _update(**options: Any) -> Any:
    tx = federated.weighted_momentum()
    return tx.update(drawn(0), tx.init(drawn(0)), **options)


def _convert(**options: Any) -> Any:
    late = federated.adaptive_dc_asgd()
    return late.convert(drawn(0, 3), drawn(1, 3), drawn(2), late.init(drawn(2)), **options)
