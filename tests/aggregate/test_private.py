"""Private aggregates: what one client can do, and Optax's numbers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from tests.aggregate.rules import CLIENTS, params, sent

dp_mean = optkit.aggregate.dp_mean


def direction(rule: Any, displacement: Any, **options: Any) -> Any:
    out = rule.apply(displacement, rule.init(params(), CLIENTS), **options)
    return np.concatenate([np.ravel(np.float64(x)) for x in jax.tree.leaves(out.direction)])


@given(st.integers(0, 99), st.floats(0.01, 100.0), st.floats(-30.0, 30.0))
def test_one_report_moves_the_mean_by_its_length_at_most(
    seed: int, clip: float, power: float
) -> None:
    rule = dp_mean(jnp.float32(clip), 0.0, expected=4, key=0)
    reports = sent(seed)
    other = jax.tree.map(lambda x: x.at[0].multiply(-(10.0**power)), reports)
    with_it = direction(rule, reports)
    without = direction(rule, reports, present=np.arange(CLIENTS) != 0)
    room = clip / 4 * (1 + 1e-5) + 1e-6 * np.abs(with_it).max()
    assert np.linalg.norm(with_it - without) <= room
    assert np.linalg.norm(direction(rule, other) - with_it) <= 2 * room


def test_weights_are_not_read_and_an_empty_round_moves_by_noise() -> None:
    rule = dp_mean(1.0, 1.0, expected=4, key=0)
    want = direction(rule, sent(0))
    np.testing.assert_array_equal(direction(rule, sent(0), weight=np.arange(1.0, 9.0)), want)
    nobody = np.zeros(CLIENTS, bool)
    out = rule.apply(sent(0), rule.init(params(), CLIENTS), present=nobody)
    assert bool(out.moved)
    silent = direction(dp_mean(1.0, 0.0, expected=4, key=0), sent(0))
    np.testing.assert_allclose(direction(rule, sent(0), present=nobody), want - silent, atol=1e-6)


def test_without_noise_it_is_centered_clipping_where_all_report() -> None:
    ours = optkit.aggregate.dp_centered_clipping(1.5, key=0)
    plain = optkit.aggregate.centered_clipping(radius=1.5)
    states = [rule.init(params(), CLIENTS) for rule in (ours, plain)]
    for t in range(3):
        outs = [r.apply(sent(t), s) for r, s in zip((ours, plain), states, strict=True)]
        states = [out.state for out in outs]
        for name, got in outs[0].direction.items():
            np.testing.assert_allclose(got, outs[1].direction[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_the_dialect_is_optax(momentum: float | None) -> None:
    theirs = optax.contrib.differentially_private_aggregate(0.5, 1.5, key=7)
    ours = optkit.aggregate.as_transform(dp_mean(0.5, 1.5, key=7, dialect="optax"), CLIENTS)
    states, held = [], []
    for first in (theirs, ours):
        tx = optax.chain(first, optax.sgd(0.1, momentum=momentum))
        state, own = tx.init(params()), params()
        for t in range(3):
            updates, state = tx.update(sent(t), state)
            own = optax.apply_updates(own, updates)
        held.append(own)
        states.append(state)
    for name, got in held[1].items():
        np.testing.assert_allclose(got, held[0][name], atol=2e-6)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ValueError, match="expected=None: give how many"):
        dp_mean(1.0, 1.0, key=0)
    with pytest.raises(ValueError, match="expected=0"):
        dp_mean(1.0, 1.0, key=0, expected=0)
    with pytest.raises(ValueError, match="did you mean 'optax'"):
        dp_mean(1.0, 1.0, key=0, dialect="optx")
    with pytest.raises(ValueError, match="clip=inf with"):
        dp_mean(np.inf, 1.0, key=0, expected=1)
    with pytest.raises(ValueError, match=r"noise_std=-1\.0"):
        optkit.aggregate.dp_centered_clipping(1.0, -1.0, key=0)
