"""The buffer: when it steps, what late reports count, and calls of any size."""

from typing import Any

import chex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit
from optkit.aggregate import fedbuff
from optkit.federated import constant_staleness, polynomial_staleness

SENT = np.random.default_rng(0).standard_normal((12, 2)).astype(np.float32)
LATE = np.random.default_rng(1).integers(0, 5, 12)
WEIGHT = np.random.default_rng(2).integers(1, 4, 12).astype(np.float32)


@given(
    sizes=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    size=st.integers(1, 5),
    reduce=st.sampled_from(["sum", "mean"]),
)
@settings(max_examples=12, deadline=None)
def test_it_steps_once_enough_have_come(sizes: Any, size: int, reduce: Any) -> None:
    rule = fedbuff(size, reduce=reduce)
    state = rule.init(jnp.zeros(2), 12)
    total, weight, held, start = np.zeros(2), 0.0, 0, 0
    for count in sizes:
        rows = slice(start, min(start + count, 12))
        start = rows.stop
        given = {"weight": WEIGHT[rows], "staleness": LATE[rows]}
        if len(SENT[rows]) == 0:
            continue
        out = rule.apply(jnp.asarray(SENT[rows]), state, **given)
        state = out.state
        for d, w, late in zip(SENT[rows], WEIGHT[rows], LATE[rows], strict=True):
            total, weight, held = total + w * d / np.sqrt(1.0 + late), weight + w, held + 1
        assert bool(out.moved) == (held >= size)
        if held >= size:
            want = total if reduce == "sum" else total / weight
            np.testing.assert_allclose(out.direction, want, atol=1e-5)
            total, weight, held = np.zeros(2), 0.0, 0
    np.testing.assert_allclose(state.total, total, atol=1e-5)
    assert int(state.reports) == held


def test_prompt_reports_of_a_mean_are_the_mean() -> None:
    sent = jnp.asarray(SENT[:4])
    buffered, plain = fedbuff(4, reduce="mean"), optkit.aggregate.mean()
    got, want = (rule.apply(sent, rule.init(jnp.zeros(2), 4)) for rule in (buffered, plain))
    chex.assert_trees_all_close(got.direction, want.direction, rtol=1e-6)


def test_absent_ones_do_not_fill_it() -> None:
    rule = fedbuff(2)
    out = rule.apply(jnp.ones((3, 2)), rule.init(jnp.zeros(2), 3), present=[True, False, False])
    assert int(out.state.reports) == 1 and not bool(out.moved)


def test_a_whole_round_hands_staleness_on() -> None:
    late = [0, 3, 8]
    weigh = polynomial_staleness(0.5, average=0.0)
    server = optkit.server_step(fedbuff(3, staleness_weight=weigh), optax.sgd(1.0))
    run = optkit.federated_round(lambda x, d: x - d, server, chunk=2)
    params = jnp.zeros(2)
    data = jnp.asarray(SENT[:3])
    got, _, _ = run(params, server.init(params, 3), data, staleness=late)
    np.testing.assert_allclose(got, -(np.array([1.0, 0.5, 1 / 3]) @ SENT[:3]), rtol=1e-5)


def test_the_first_link_of_a_chain_takes_staleness() -> None:
    first = optkit.aggregate.as_transform(fedbuff(1), 1)
    u, _ = first.update(jnp.ones((1, 2)), first.init(jnp.zeros(2)), staleness=[3])
    assert u.tolist() == [0.5, 0.5]


def test_options_are_checked() -> None:
    wrong: Any = {"reduce": "median"}, {"staleness_weight": 0.5}
    with pytest.raises(ValueError, match="size=0 must be an integer"):
        fedbuff(0)
    with pytest.raises(ValueError, match="reduce='median' is not one of"):
        fedbuff(1, **wrong[0])
    with pytest.raises(TypeError, match=r"staleness_weight=0.5 must be a function"):
        fedbuff(1, **wrong[1])
    rule = fedbuff(1, staleness_weight=constant_staleness())
    with pytest.raises(ValueError, match="staleness has shape"):
        rule.apply(jnp.ones((2, 1)), rule.init(jnp.zeros(1), 2), staleness=[1])
