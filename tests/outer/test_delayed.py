"""Delayed Nesterov against a loop, and equal rounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit


def loop(moved: np.ndarray, mu: float, every: int, share: float) -> list[np.ndarray]:
    """Algorithm and names of the paper, in float64."""
    m, buffer, out = np.zeros(moved.shape[1]), np.zeros(moved.shape[1]), []
    for t, away in enumerate(np.float64(moved), 1):
        buffer = buffer + away
        if t % every == 0:
            m = mu * m + buffer / every
            out.append((1 - share * every + share) * mu * m + away / every)
            buffer = np.zeros_like(buffer)
        else:
            out.append(share * mu * m + away / every)
    return out


def follow(tx: Any, moved: np.ndarray) -> np.ndarray:
    x = jnp.zeros(moved.shape[1])
    return np.asarray(jax.lax.scan(lambda s, d: tx.update(d, s)[::-1], tx.init(x), moved)[1])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.integers(0, 2**31))
def test_arrivals_are_the_algorithms(every: int, mu: float, part: float, seed: int) -> None:
    moved = np.float32(np.random.default_rng(seed).standard_normal((9, 3)))
    share = part / every
    got = follow(optkit.delayed_nesterov(mu, every=every, share=share), moved)
    np.testing.assert_allclose(got, loop(moved, mu, every, share), rtol=1e-5, atol=2e-5)


def test_at_each_arrival_it_is_nesterovs() -> None:
    moved = np.float32(np.random.default_rng(1).standard_normal((5, 3)))
    ours = follow(optkit.delayed_nesterov(0.9, every=1), moved)
    theirs = follow(optax.trace(0.9, nesterov=True), moved)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_server_takes_it() -> None:
    outer = optax.chain(optkit.delayed_nesterov(0.5, every=2), optax.scale(-1.0))
    server = optkit.server_step(optkit.aggregate.mean(), outer)
    x = jnp.zeros(1)
    state = server.init(x, clients=2)
    for who in (0, 1, 1, 0):  # one arrival each
        x, state = server.step(x, state, jnp.ones((1, 1)), client=[who])
    want = -sum(loop(np.ones((4, 1)), 0.5, 2, 0.0))
    np.testing.assert_allclose(x, want, rtol=1e-6)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=6), st.integers(1, 500))
def test_rounds_last_no_longer_than_the_fastest_ones(speeds: list[float], steps: int) -> None:
    rounds = optkit.dylu_steps(speeds, steps)
    assert rounds[int(np.argmax(speeds))] == steps and min(rounds) >= 1
    longest = steps / max(speeds)
    for count, speed in zip(rounds, speeds, strict=True):
        assert count == 1 or count / speed <= longest * (1 + 1e-6)
        assert (count + 1) / speed > longest * (1 - 1e-6)


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match=r"share=0\.6"):
        optkit.delayed_nesterov(every=2, share=0.6)
    with pytest.raises(ValueError, match="every=0"):
        optkit.delayed_nesterov(every=0)
    with pytest.raises(ValueError, match="speeds is empty"):
        optkit.dylu_steps([], 4)
    with pytest.raises(ValueError, match=r"speeds=0\.0 must be above 0"):
        optkit.dylu_steps([1.0, 0.0], 4)
