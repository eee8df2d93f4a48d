"""Reports that can be none: refused where they are known, absent where they are traced."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit
from optkit.aggregate import (
    centered_clipping,
    coordinate_median,
    fedau,
    fedbuff,
    fedstale,
    fedvarp,
    finite_clients,
    mean,
    mifa,
)
from optkit.federated import polynomial_staleness

PARAMS = {"w": jnp.zeros(3)}
SENT = {"w": jnp.arange(12.0).reshape(4, 3)}
REMEMBERING = {
    "fedau": fedau(),
    "fedvarp": fedvarp(form="participants"),
    "fedstale": fedstale(),
    "mifa": mifa(),
}
KEEPING = {key: rule for key, rule in REMEMBERING.items() if key != "fedau"}


def rows(*which: int) -> dict[str, jax.Array]:
    return {"w": SENT["w"][jnp.array(which)]}


@pytest.mark.parametrize("rule", [mean(), mifa(), fedbuff(1)], ids=["mean", "mifa", "fedbuff"])
def test_a_report_without_its_axis_of_clients_is_refused(rule: Any) -> None:
    server = optkit.server_step(rule, optax.sgd(1.0))
    state = server.init(PARAMS, 3)
    with pytest.raises(ValueError, match=r"shape \(3,\) at leaf 'w'.*\(3,\).*leading axis of cl"):
        jax.jit(server.step)(PARAMS, state, {"w": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"differ at leaf 'b'"):
        server.step(PARAMS, state, {"b": jnp.ones((3, 3))})


@pytest.mark.parametrize(
    "rule",
    [fedvarp(), fedstale(), mifa(), centered_clipping(radius=1.0), fedbuff(1)],
    ids=["fedvarp", "fedstale", "mifa", "centered_clipping", "fedbuff"],
)
def test_a_state_refuses_reports_of_other_shapes(rule: Any) -> None:
    state = rule.init(PARAMS, 3)
    with pytest.raises(ValueError, match=r"at leaf 'w' and the state \(3,\): give reports"):
        rule.apply({"w": jnp.ones(3)}, state)


def test_a_transform_and_a_direction_are_checked_too() -> None:
    first = optkit.aggregate.as_transform(mean(), 3)
    with pytest.raises(ValueError, match=r"updates has shape \(3,\) at leaf 'w'"):
        first.update({"w": jnp.ones(3)}, first.init(PARAMS), PARAMS)
    server = optkit.server_step(mean(), optax.sgd(1.0))
    out = mean().apply({"w": jnp.ones((2, 1))}, ())
    with pytest.raises(ValueError, match=r"direction has shape \(1,\)"):
        server.move(PARAMS, server.init(PARAMS, 2), out)


@pytest.mark.parametrize("name", REMEMBERING)
def test_ids_are_checked(name: str) -> None:
    rule = REMEMBERING[name]
    state = rule.init(PARAMS, 4)
    two = rows(0, 1)
    for given, message in (
        ({}, "keeps something of 4: give client="),
        ({"client": [0, 4]}, r"client\[1\]=4 is none of the 4 clients"),
        ({"client": jnp.array([-1, 0])}, r"client\[0\]=-1 is none of the 4"),
        ({"client": [2, 2]}, "client=2 is there 2 times"),
        ({"client": [0.5, 1.0]}, r"client\[0\]=0.5 must be an integer"),
        ({"client": [True, False]}, "client must be integers and is bool"),
    ):
        with pytest.raises(ValueError, match=message):
            rule.apply(two, state, **given)
    with pytest.raises(ValueError, match="5 clients and the state keeps something of 4"):
        rule.apply({"w": jnp.ones((5, 3))}, state, client=jnp.arange(5))
    # Absent ones fill up: their ids are not read.
    rule.apply(two, state, client=[2, 2], present=[True, False])
    rule.apply(two, state, client=[2, -1], present=[True, False])


@pytest.mark.parametrize("name", REMEMBERING)
def test_traced_ids_of_nobody_are_absent(name: str) -> None:
    rule = REMEMBERING[name]
    apply, state = jax.jit(rule.apply), rule.init(PARAMS, 4)
    got = apply(rows(1, 2, 3), state, client=jnp.array([1, -1, 4]))
    want = apply(rows(1, 2, 3), state, client=jnp.array([1, 0, 2]), present=[True, False, False])
    chex.assert_trees_all_equal(got, want)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_whole_round_checks_ids_before_it_takes_chunks(name: str) -> None:
    server = optkit.server_step(REMEMBERING[name], optax.sgd(1.0))
    run = optkit.federated_round(lambda x, d: {"w": x["w"] - d}, server, chunk=2)
    state = server.init(PARAMS, 4)
    data = SENT["w"][:3]
    with pytest.raises(ValueError, match="give client="):
        run(PARAMS, state, data)
    with pytest.raises(ValueError, match="is there 2 times"):
        run(PARAMS, state, data, client=[1, 0, 1])
    got, kept, _ = jax.jit(run)(PARAMS, state, data, client=jnp.array([3, 9, 0]))
    want, held = server.step(PARAMS, state, rows(0, 2), client=[3, 0])
    chex.assert_trees_all_close((got, kept), (want, held), rtol=1e-6)


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_neither_kept_nor_counted(name: str, bad: float) -> None:
    rule = KEEPING[name]
    apply = jax.jit(rule.apply)
    state = apply(SENT, rule.init(PARAMS, 4)).state
    spoilt = {"w": (2.0 * SENT["w"]).at[1, 2].set(bad)}
    everybody, others = jnp.ones(4, bool), jnp.array([True, False, True, True])
    got = apply(spoilt, state, present=everybody)
    want = apply(spoilt, state, present=others)
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_equal(got, want)


def test_finite_clients_makes_a_mean_of_the_rest() -> None:
    spoilt = {"w": SENT["w"].at[1, 2].set(jnp.nan), "b": jnp.array([0.0, 0.0, jnp.inf, 0.0])}
    assert finite_clients(spoilt).tolist() == [True, False, False, True]
    out = mean().apply(spoilt, (), present=finite_clients(spoilt))
    np.testing.assert_allclose(out.direction["w"], (SENT["w"][0] + SENT["w"][3]) / 2)
    with pytest.raises(ValueError, match="no arrays"):
        finite_clients({})


@pytest.mark.parametrize("bad", [-1.0, jnp.nan, jnp.inf])
def test_weights_are_refused_or_absent(bad: float) -> None:
    rule, weight = mean(), [1.0, bad, 3.0, 1.0]
    with pytest.raises(ValueError, match=r"weight\[1\]=.* must be finite and at least 0"):
        rule.apply(SENT, (), weight=weight)
    got = jax.jit(rule.apply)(SENT, (), weight=jnp.array(weight))
    away = [True, False, True, True]
    chex.assert_trees_all_equal(got, rule.apply(SENT, (), weight=weight, present=away))


def test_staleness_is_a_number_of_rounds() -> None:
    rule = fedbuff(1)
    state = rule.init(PARAMS, 2)
    for late, message in (
        ([0, -1], r"staleness\[1\]=-1 must be a number of rounds"),
        ([0.5, 1.0], r"staleness\[0\]=0.5 must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            rule.apply(rows(0, 1), state, staleness=late)
    rule.apply(rows(0, 1), state, staleness=[0.0, 2.0])


def test_arguments_in_another_order_are_said() -> None:
    server = optkit.server_step(mean(), optax.sgd(1.0))
    state = server.init(PARAMS, 4)
    swapped: Any = (state, PARAMS)
    match = r"state must be what init returned.*dict; arguments are \(params, state, "
    with pytest.raises(TypeError, match=match):
        server.step(*swapped, SENT)
    with pytest.raises(TypeError, match=match):
        optkit.federated_round(lambda x, d: x, server)(*swapped, SENT)
    numbers: Any = (20, PARAMS)
    with pytest.raises(TypeError, match=r"params=20 must be the parameters; arguments are"):
        server.init(*numbers)


def test_what_is_no_aggregate_or_not_called_is_said() -> None:
    three: Any = 3
    with pytest.raises(TypeError, match="aggregate=3 must be what a factory"):
        optkit.aggregate.as_transform(three, 3)
    factory: Any = polynomial_staleness
    with pytest.raises(TypeError, match="polynomial_staleness makes such a function; call it"):
        fedbuff(1, staleness_weight=factory)
    with pytest.raises(ValueError, match=r"^coordinate_median needs at least 1 clients"):
        coordinate_median().apply({"w": jnp.zeros((0, 3))}, ())
