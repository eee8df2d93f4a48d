"""Laws of fitness shaping."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optkit.evolution import shaping
from optkit.evolution.judging import Judge

# One length, so that each function compiles once.
SIZE = 8
VALUES = st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0]), min_size=SIZE, max_size=SIZE)
RANKED: dict[str, Callable[..., jax.Array]] = {
    "centered_rank": shaping.centered_rank,
    "nes_utilities": shaping.nes_utilities,
}
CENTRED: dict[str, Callable[..., jax.Array]] = {
    **RANKED,
    "z_score": shaping.z_score,
    "z_score in groups": partial(shaping.z_score, groups=4),
    "standardize": shaping.standardize,
    "top_k": partial(shaping.top_k, k=3),
    "pair_sign": shaping.pair_sign,
    "pair_difference": shaping.pair_difference,
    "top_pairs": partial(shaping.top_pairs, pairs=2),
}
JITTED = {name: jax.jit(function) for name, function in CENTRED.items()}


def weights(name: str, values: Any) -> np.ndarray:
    return np.asarray(JITTED[name](jnp.asarray(values, jnp.float32)))


@pytest.mark.parametrize("name", CENTRED)
@given(values=VALUES)
def test_weights_sum_to_zero(name: str, values: list[float]) -> None:
    assert abs(weights(name, values).sum()) < 1e-5


@pytest.mark.parametrize("name", RANKED)
@given(values=VALUES)
def test_ranks_see_order_alone(name: str, values: list[float]) -> None:
    moved = np.exp(np.asarray(values)) * 3 - 100
    np.testing.assert_allclose(weights(name, values), weights(name, moved), atol=1e-6)


@pytest.mark.parametrize("name", ["centered_rank", "nes_utilities", "z_score", "standardize"])
@given(values=VALUES, order=st.permutations(range(SIZE)))
def test_members_have_no_order(name: str, values: list[float], order: list[int]) -> None:
    given_values = np.asarray(values)
    np.testing.assert_allclose(
        weights(name, given_values)[order], weights(name, given_values[order]), atol=1e-6
    )


@pytest.mark.parametrize("name", sorted(set(CENTRED) - {"top_k"}))
def test_a_flat_generation_weighs_nothing(name: str) -> None:
    np.testing.assert_allclose(weights(name, [2.5] * SIZE), 0.0, atol=1e-6)


@pytest.mark.parametrize("name", ["centered_rank", "nes_utilities", "z_score", "standardize"])
@given(values=VALUES)
def test_better_members_weigh_no_less(name: str, values: list[float]) -> None:
    order = np.argsort(values)
    assert (np.diff(weights(name, values)[order]) > -1e-6).all()


def test_equal_members_share_their_utilities() -> None:
    lone = weights("nes_utilities", range(SIZE))
    tied = weights("nes_utilities", [0, 1, 2, 3, 4, 6, 6, 6])
    np.testing.assert_allclose(tied[5:], lone[5:].mean(), rtol=1e-5)


def test_not_a_number_is_worst_or_left_out() -> None:
    values = [3.0, np.nan, 1.0, 2.0, 5.0, np.nan, 0.0, -np.inf]
    ranks = weights("centered_rank", values)
    assert ranks[1] == ranks[5] == ranks.min() < ranks[7]
    good = [3.0, 1.0, 2.0, 5.0, 0.0]
    scores = np.asarray(shaping.standardize(jnp.asarray([*good, np.nan])))
    np.testing.assert_allclose(scores[:5], np.asarray(shaping.standardize(jnp.asarray(good))))
    assert scores[5] == 0


@pytest.mark.parametrize("maximize", [True, False])
def test_the_judge_turns_losses_round(maximize: bool) -> None:
    judge = Judge(4, "centered_rank", maximize)
    sign = 1.0 if maximize else -1.0
    wanted = sign * np.array([-0.5, -1 / 6, 1 / 6, 0.5])
    np.testing.assert_allclose(judge(jnp.arange(4.0)), wanted, rtol=1e-6)


def test_members_that_were_not_judged() -> None:
    values = jnp.asarray([1.0, np.nan, 4.0, 2.0, np.inf, 9.0])
    worst = Judge(6, None, nonfinite="worst")(values)
    assert worst.tolist() == [1.0, 1.0, 4.0, 2.0, 1.0, 9.0]
    # Their partners go with them: alone they say nothing about a direction.
    assert Judge(6, None, nonfinite="zero")(values).tolist() == [0.0, 0.0, 4.0, 2.0, 0.0, 0.0]
    alone = Judge(6, None, nonfinite="zero", paired=False)(values)
    assert alone.tolist() == [1.0, 0.0, 4.0, 2.0, 0.0, 9.0]
    for how in ("worst", "zero"):
        assert not Judge(6, "centered_rank", nonfinite=how)(jnp.full(6, np.nan)).any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: shaping.z_score(jnp.zeros(6), groups=4), "groups=4 does not divide"),
        (lambda: shaping.top_k(jnp.zeros(6), 7), r"k=7 is outside \[1, 6\]"),
        (lambda: shaping.pair_sign(jnp.zeros(5)), "5 members is odd"),
        (lambda: shaping.top_pairs(jnp.zeros(6), 4), r"pairs=4 is outside \[1, 3\]"),
        (lambda: shaping.nes_utilities(jnp.zeros(3), ties="none"), "ties='none'"),
        (lambda: Judge(4, "rank"), "rank"),
        (lambda: Judge(4, 3), "shaping=3"),
        (lambda: Judge(4, nonfinite="drop"), "drop"),
        (lambda: Judge(4, lambda f: f[:2])(jnp.zeros(4)), r"the shaping returned \(2,\)"),
        (lambda: Judge(4)(jnp.zeros(5)), r"shape \(5,\), not \(4,\)"),
        (lambda: Judge(4, questions=True)(jnp.zeros(4)), r"not \(questions, 4\)"),
    ],
)
def test_wrong_use_is_named(call: Callable[[], Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        call()
