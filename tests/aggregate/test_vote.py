"""The majority's sign: one vote a client, whatever it sends."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import given, settings
from hypothesis import strategies as st

import optkit

RULE = optkit.aggregate.majority_vote()
APPLY = jax.jit(RULE.apply)
SERVER = optkit.server_step(RULE, optax.sgd(0.5))
STEP, ALONE = jax.jit(SERVER.step), jax.jit(optkit.signsgd(0.5).update)
CLIENTS, HOSTILE, SIZE = 7, 3, 4
TIGHT = settings(max_examples=15, deadline=None)
# Few values, so that votes often tie.
ENTRY = st.sampled_from([-2.0, -1e-30, 0.0, 1e-30, 0.5, 3e38])
ROW = st.lists(ENTRY, min_size=SIZE, max_size=SIZE)


def tree_of(rows: Any) -> dict[str, jax.Array]:
    """Rows (W, SIZE) as a tree of a vector and a scalar a client."""
    v = np.float32(rows)
    return {"w": jnp.asarray(v[:, 1:]), "s": jnp.asarray(v[:, 0])}


def flat(tree: dict[str, jax.Array]) -> np.ndarray:
    return np.concatenate([np.ravel(tree["s"]), np.ravel(tree["w"])])


def params() -> dict[str, jax.Array]:
    return {"w": jnp.zeros(SIZE - 1), "s": jnp.zeros(())}


def vote(rows: Any, **given: Any) -> optkit.aggregate.Aggregated:
    return APPLY(tree_of(rows), (), **given)


@TIGHT
@given(
    rows=st.lists(ROW, min_size=CLIENTS, max_size=CLIENTS),
    weight=st.lists(st.integers(0, 3), min_size=CLIENTS, max_size=CLIENTS),
    present=st.lists(st.booleans(), min_size=CLIENTS, max_size=CLIENTS),
)
def test_it_is_the_sign_of_the_weighted_sum_of_signs(
    rows: list[list[float]], weight: list[int], present: list[bool]
) -> None:
    counted = np.where(present, weight, 0)
    want = [
        np.sign(sum(int(w) * int(np.sign(row[k])) for w, row in zip(counted, rows, strict=True)))
        for k in range(SIZE)
    ]
    sent = np.where(np.array(present)[:, None], rows, np.nan)
    out = vote(sent, weight=np.float32(weight), present=np.array(present))
    np.testing.assert_array_equal(flat(out.direction), want)
    assert bool(out.moved) == bool(counted.sum() > 0)


@TIGHT
@given(row=ROW)
def test_identical_workers_are_one_worker(row: list[float]) -> None:
    out = vote([row] * CLIENTS)
    one = jax.tree.map(lambda x: x[0], tree_of([row]))
    many, _ = STEP(params(), SERVER.init(params(), CLIENTS), tree_of([row] * CLIENTS))
    step, _ = ALONE(one, optkit.signsgd(0.5).init(params()), params())
    chex.assert_trees_all_equal(out.direction, jax.tree.map(jnp.sign, one))
    chex.assert_trees_all_equal(many, step)


HOSTILE_ENTRY = st.sampled_from([np.nan, np.inf, -np.inf, -3e38, 3e38, 0.0, -1.0, 1.0])


@TIGHT
@given(
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=SIZE, max_size=SIZE),
    sizes=st.lists(
        st.floats(2.0**-100, 2.0**100, width=32), min_size=CLIENTS * SIZE, max_size=CLIENTS * SIZE
    ),
    garbage=st.lists(HOSTILE_ENTRY, min_size=HOSTILE * SIZE, max_size=HOSTILE * SIZE),
    places=st.permutations(range(CLIENTS)),
)
def test_a_minority_never_turns_a_unanimous_sign(
    signs: list[float], sizes: list[float], garbage: list[float], places: list[int]
) -> None:
    rows = np.array(signs)[None] * np.reshape(sizes, (CLIENTS, SIZE))
    rows[places[:HOSTILE]] = np.reshape(garbage, (HOSTILE, SIZE))
    np.testing.assert_array_equal(flat(vote(rows).direction), signs)


def test_half_are_enough_to_stop_a_coordinate_and_more_to_turn_it() -> None:
    rows = np.ones((4, SIZE))
    rows[:2] = -1.0
    np.testing.assert_array_equal(flat(vote(rows).direction), 0.0)
    rows[2, 0] = np.nan  # it does not vote
    np.testing.assert_array_equal(flat(vote(rows).direction), [-1.0] + [0.0] * (SIZE - 1))


def test_signum_is_the_vote_on_momentum_of_the_clients() -> None:
    """Clients that keep momentum of the same gradients are together one that runs Signum."""
    grads = np.random.default_rng(0).standard_normal((5, SIZE)).astype(np.float32)
    tx, keep = optkit.signum(0.5, b1=0.75), optkit.momentum(0.75)
    alone = many = params()
    state, own, kept = tx.init(alone), SERVER.init(many, CLIENTS), keep.init(alone)
    for row in grads:
        g = jax.tree.map(lambda x: x[0], tree_of([row]))
        u, state = tx.update(g, state, alone)
        alone = optax.apply_updates(alone, u)
        m, kept = keep.update(g, kept)
        sent = jax.tree.map(lambda x: jnp.stack([x] * CLIENTS), m)
        many, own = STEP(many, own, sent)
    chex.assert_trees_all_equal(alone, many)
