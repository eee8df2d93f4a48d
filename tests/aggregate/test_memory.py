"""Aggregates with a memory against slow equations, and what they promise of the mean."""

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import optkit
from optkit.aggregate import fedau, fedstale, fedvarp, mifa

CLIENTS = 4
SHARES = (1.0, 2.0, 3.0, 4.0)
PROBABILITIES = (0.9, 0.5, 0.25, 1.0)
PARAMS = {"w": jnp.zeros(2)}
TABLES = st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=6)


def drawn(seed: int, rounds: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rounds, CLIENTS, 2)).astype(np.float32)


def run(rule: Any, sent: np.ndarray, table: Any) -> tuple[np.ndarray, list[Any]]:
    apply, state = jax.jit(rule.apply), rule.init(PARAMS, CLIENTS)
    directions, outs = [], []
    for d, present in zip(sent, table, strict=True):
        outs.append(apply({"w": jnp.asarray(d)}, state, present=jnp.asarray(present)))
        state = outs[-1].state
        directions.append(np.asarray(outs[-1].direction["w"]))
    return np.array(directions), outs


def recalled(sent: np.ndarray, table: Any, beta: float, form: str) -> np.ndarray:
    """The equations of the papers, a client at a time, in float64."""
    a = np.array(SHARES) / np.sum(SHARES)
    h, out = np.zeros((CLIENTS, 2)), []
    for d, present in zip(np.float64(sent), table, strict=True):
        who = [i for i in range(CLIENTS) if present[i]]
        u = sum((beta * a[i] * h[i] for i in range(CLIENTS)), np.zeros(2))
        for i in who:
            weight = a[i] / (PROBABILITIES[i] if form == "unbiased" else sum(a[j] for j in who))
            u = u + weight * (d[i] - beta * h[i])
        for i in who:
            h[i] = d[i]
        out.append(u)
    return np.array(out)


@given(table=TABLES, seed=st.integers(0, 99), beta=st.sampled_from([0.0, 0.3, 1.0]))
@settings(max_examples=12, deadline=None)
def test_fedstale_is_its_equation(table: Any, seed: int, beta: float) -> None:
    sent = drawn(seed, len(table))
    rule = fedstale(beta, shares=SHARES, participation=PROBABILITIES)
    got, outs = run(rule, sent, table)
    np.testing.assert_allclose(got, recalled(sent, table, beta, "unbiased"), atol=5e-6)
    assert [bool(out.moved) for out in outs] == [any(present) for present in table]


@given(table=TABLES, seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_fedvarp_of_participants_is_its_equation(table: Any, seed: int) -> None:
    sent = drawn(seed, len(table))
    got, _ = run(fedvarp(form="participants", shares=SHARES), sent, table)
    np.testing.assert_allclose(got, recalled(sent, table, 1.0, "participants"), atol=5e-6)


@given(table=TABLES, seed=st.integers(0, 99))
@settings(max_examples=10, deadline=None)
def test_mifa_is_the_mean_of_what_came_last(table: Any, seed: int) -> None:
    sent = drawn(seed, len(table))
    got, outs = run(mifa(shares=SHARES), sent, table)
    last = np.zeros((CLIENTS, 2))
    for t, present in enumerate(table):
        last = np.where(np.array(present)[:, None], sent[t], last)
        np.testing.assert_allclose(got[t], np.array(SHARES) / 10 @ last, atol=1e-6)
    assert all(bool(out.moved) for out in outs)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_mean_over_who_may_come_is_the_mean_over_all(beta: float) -> None:
    """Of all rounds that the probabilities allow, whatever is remembered."""
    rule = fedstale(beta, shares=SHARES, participation=PROBABILITIES)
    first, second = drawn(3, 2)
    state = run(rule, first[None], [[True] * CLIENTS])[1][0].state
    apply, total = jax.jit(rule.apply), np.zeros(2)
    for present in itertools.product([False, True], repeat=CLIENTS):
        chances = [p if here else 1 - p for p, here in zip(PROBABILITIES, present, strict=True)]
        out = apply({"w": jnp.asarray(second)}, state, present=jnp.asarray(present))
        total += np.prod(chances) * np.asarray(out.direction["w"], np.float64)
    np.testing.assert_allclose(total, np.array(SHARES) / 10 @ second, atol=1e-6)


def test_static_clients_give_the_mean_of_all_whoever_comes() -> None:
    sent = np.repeat(drawn(5, 1), 4, axis=0)
    table = [[True] * 4, [True, False, False, False], [False, True, True, False], [False] * 4]
    mean = np.array(SHARES) / 10 @ sent[0]
    for rule in (fedvarp(form="participants", shares=SHARES), mifa(shares=SHARES)):
        got, _ = run(rule, sent, table)
        np.testing.assert_allclose(got, np.repeat(mean[None], 4, axis=0), atol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_everybody_always_gives_the_mean_for_any_beta(beta: float) -> None:
    sent = drawn(6, 3)
    got, _ = run(fedstale(beta, participation=1.0), sent, [[True] * 4] * 3)
    np.testing.assert_allclose(got, sent.mean(axis=1), atol=1e-6)


def test_the_ends_of_beta_are_fedau_and_fedvarp() -> None:
    sent = drawn(7, 5)
    table = np.random.default_rng(7).random((5, 4)) < 0.5
    for beta, other in (
        (0.0, fedau(shares=SHARES)),
        (1.0, fedvarp(shares=SHARES, participation="estimated")),
    ):
        got, _ = run(fedstale(beta, shares=SHARES), sent, table)
        np.testing.assert_allclose(got, run(other, sent, table)[0], atol=1e-6)


def test_it_is_linear_in_what_is_sent() -> None:
    one, other = drawn(8, 4), drawn(9, 4)
    table = [[True] * 4, [True, False, True, False], [False, True, True, False], [True] * 4]
    rule = fedstale(0.5, participation=PROBABILITIES)
    both, _ = run(rule, 2.0 * one - 3.0 * other, table)
    parts = 2.0 * run(rule, one, table)[0] - 3.0 * run(rule, other, table)[0]
    np.testing.assert_allclose(both, parts, atol=2e-5)


@pytest.mark.parametrize("rule", [fedvarp(), fedstale(), mifa()], ids=["varp", "stale", "mifa"])
def test_an_empty_round_writes_nothing(rule: Any) -> None:
    sent = drawn(10, 2)
    _, (before, after) = run(rule, sent, [[True] * 4, [False] * 4])
    memory = lambda out: getattr(out.state, "last", out.state)  # noqa: E731
    chex.assert_trees_all_equal(memory(after), memory(before))
    assert bool(after.moved) == (memory(after) is after.state)  # MIFA alone


def test_clients_keep_their_place_in_any_order() -> None:
    sent = jnp.asarray(drawn(11, 1)[0])
    rule = mifa()
    out = rule.apply({"w": sent[:2]}, rule.init(PARAMS, CLIENTS), client=[3, 1])
    want = jnp.zeros((4, 2)).at[jnp.array([3, 1])].set(sent[:2])
    chex.assert_trees_all_equal(out.state["w"], want)


def test_without_momentum_an_empty_round_leaves_the_server() -> None:
    server = optkit.server_step(fedvarp(), optax.sgd(1.0, momentum=0.9))
    state = server.init(PARAMS, CLIENTS)
    sent = {"w": jnp.asarray(drawn(12, 1)[0])}
    params, state = server.step(PARAMS, state, sent)
    stayed, after = server.step(params, state, sent, present=[False] * 4)
    chex.assert_trees_all_equal((stayed, after.optimizer), (params, state.optimizer))


def test_the_memory_lies_like_the_parameters() -> None:
    params = {"w": jax.ShapeDtypeStruct((8, 4), jnp.float32)}
    state = jax.eval_shape(lambda: fedstale().init({"w": jnp.zeros((8, 4))}, CLIENTS))
    specs = optkit.state_sharding(state, params, {"w": P("x", None)})
    assert specs.last["w"] == P(None, "x", None)
    assert specs.attendance.weight == P()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fedstale(1.5), "beta=1.5 is outside"),
        (lambda: fedvarp(form="all"), "form='all' is not one of"),
        (lambda: fedvarp(participation="known"), "participation='known' is not one of"),
        (lambda: fedvarp(participation=0.0), r"participation=0\.0 must be above 0"),
        (lambda: fedvarp(participation=[0.5, 1.5]), r"participation\[1\]=1.5 is above 1"),
        (lambda: fedvarp(shares=[1.0, -1.0]), "shares must be one positive number"),
        (lambda: fedvarp(shares=[1.0]).init(PARAMS, 4), "shares has 1 numbers and there are 4"),
        (lambda: mifa(shares=[1.0]).init(PARAMS, 4), "shares has 1 numbers and there are 4"),
        (
            lambda: fedvarp(participation=[0.5]).init(PARAMS, 4),
            "participation has 1 numbers and there are 4",
        ),
    ],
)
def test_what_does_not_fit_is_said(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
