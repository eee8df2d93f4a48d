"""How often clients come: the estimate against a count of gaps, and its bounds."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optkit.aggregate import fedau

CLIENTS = 3


def weights(table: Any, longest: int | None = None) -> np.ndarray:
    """What each client counts after each round, (T, N)."""
    rule = fedau(longest)
    apply, state = jax.jit(rule.apply), rule.init(jnp.zeros(1), CLIENTS)
    out = []
    for present in np.asarray(table):
        state = apply(jnp.ones((CLIENTS, 1)), state, present=jnp.asarray(present)).state
        out.append(np.asarray(state.weight))
    return np.array(out)


def gaps_of(column: Any, longest: int | None) -> float:
    """The mean gap of a client so far, 1 before the first ends."""
    gaps, since = [], 0
    for here in column:
        since += 1
        if here or since == longest:
            gaps.append(since)
            since = 0
    return float(np.mean(gaps)) if gaps else 1.0


@given(
    table=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=12),
    longest=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=15, deadline=None)
def test_weights_are_mean_gaps(table: Any, longest: int | None) -> None:
    got = weights(table, longest)
    want = [
        [gaps_of([row[i] for row in table[: t + 1]], longest) for i in range(CLIENTS)]
        for t in range(len(table))
    ]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    if longest is not None:
        assert got.max() <= longest


def test_who_always_comes_counts_once_and_who_comes_every_third_time_thrice() -> None:
    table = [[True, t % 3 == 2, False] for t in range(9)]
    np.testing.assert_allclose(weights(table)[-1], [1.0, 3.0, 1.0])


def test_a_round_counts_with_weights_of_earlier_ones() -> None:
    rule = fedau(shares=[1.0, 1.0, 2.0])
    state = rule.init(jnp.zeros(1), CLIENTS)
    sent = jnp.array([[4.0], [8.0], [2.0]])
    for present, want in (
        ([False, True, True], 8 / 4 + 2 / 2),
        ([True, False, True], 4 / 4 + 2 / 2),
        ([True, True, True], 2 * 4 / 4 + 8 / 4 + 2 / 2),
        ([False] * 3, 0.0),
    ):
        out = rule.apply(sent, state, present=present)
        state = out.state
        assert out.direction.tolist() == [want] and bool(out.moved) == any(present)


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="longest=0 must be an integer"):
        fedau(0)
    with pytest.raises(ValueError, match="shares must be one positive number"):
        fedau(shares=[[1.0]])
