"""BAdam on a share of every leaf's entries, against a slow NumPy form, and its laws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import optkit
from optkit.transforms.entries import RotateEntriesState
from tests.transforms.driver import gradients

SHAPES = {"layers/0/kernel": (4, 5), "norm/scale": (6,), "small": (2,), "scalar": ()}
LR, B1, B2, EPS = 0.1, 0.7, 0.9, 1e-2
kinds = st.sampled_from(["adjacent", "scatter"])


@functools.lru_cache
def compiled(tx):
    return jax.jit(tx.update)


def held(state):
    """Where the active entries are, and what is kept of them."""
    is_own = lambda x: isinstance(x, RotateEntriesState)  # noqa: E731
    (own,) = filter(is_own, jax.tree.leaves(state, is_leaf=is_own))
    return own


def active(state, entries, ratio):
    """Indices of the active entries of each leaf, in reading order of the leaf."""
    out = {}
    for name, shape in SHAPES.items():
        size = math.prod(shape)
        place = np.asarray(held(state).places[name])
        run = int(place) + np.arange(max(int(ratio * size), 1)) if entries == "adjacent" else place
        out[name] = run % size
    return out


@pytest.mark.parametrize("mask", [None, "**"])
@given(seed=st.integers(0, 999), entries=kinds, ratio=st.sampled_from([0.3, 1.0]))
@settings(max_examples=10, deadline=None)
def test_entries_move_as_the_slow_form_says(mask, seed, entries, ratio):
    tx = optkit.badam(LR, ratio=ratio, entries=entries, refresh_every=3, b1=B1, b2=B2, eps=EPS,
                      weight_decay=0.2, mask=mask, key=1)  # fmt: skip
    (start, *grads) = gradients(seed, 8, SHAPES)
    params = {k: jnp.asarray(p, jnp.float32) for k, p in start.items()}
    want = {k: np.asarray(p, np.float64).reshape(-1) for k, p in params.items()}
    state, memory = tx.init(params), {}
    for t, g in enumerate(grads):
        updates, state = compiled(tx)(g, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, at in active(state, entries, ratio).items():
            if t % 3 == 0:
                memory[name] = 0, np.zeros(len(at)), np.zeros(len(at))
            n, m, v = memory[name]
            own = np.asarray(g[name], np.float64).reshape(-1)[at]
            n, m, v = n + 1, B1 * m + (1 - B1) * own, B2 * v + (1 - B2) * own**2
            u = np.sqrt(1 - B2**n) / (1 - B1**n) * m / (np.sqrt(v) + EPS)
            decay = 0.2 if mask or name == "layers/0/kernel" else 0.0
            want[name][at] = (1 - LR * decay) * want[name][at] - LR * u
            memory[name] = (n, m, v)
            np.testing.assert_allclose(params[name].reshape(-1), want[name], rtol=2e-5, atol=2e-6)


@given(seed=st.integers(0, 999), entries=kinds)
@settings(max_examples=10, deadline=None)
def test_the_others_rest_and_each_turn_has_its_own(seed, entries):
    tx = optkit.badam(LR, ratio=0.3, entries=entries, refresh_every=2, key=seed % 5)
    (params, *grads) = gradients(seed, 7, SHAPES)
    state, seen = tx.init(params), []
    for g in grads:
        updates, state = compiled(tx)(g, state, params)
        own = active(state, entries, 0.3)
        for name, u in updates.items():
            moved = np.flatnonzero(np.asarray(u).reshape(-1))
            assert set(moved) == set(own[name].tolist())
            assert len(moved) == max(int(0.3 * math.prod(SHAPES[name])), 1)
        seen.append(tuple(sorted(own["layers/0/kernel"].tolist())))
    assert seen[0::2] == seen[1::2]


@pytest.mark.parametrize("entries", ["adjacent", "scatter"])
def test_every_entry_has_its_turn_as_often(entries):
    """Of 300 turns a third each: 100 with a standard deviation of 8."""
    tx = optkit.badam(1.0, ratio=0.34, entries=entries, refresh_every=1, weight_decay=0.0)
    params = {"w": jnp.ones(9)}

    def step(state, _):
        u, state = tx.update(params, state, params)
        return state, u["w"] != 0

    _, moved = jax.lax.scan(step, tx.init(params), length=300)
    counts = np.asarray(moved.sum(0))
    assert counts.sum() == 3 * 300
    assert np.all(np.abs(counts - 100) < 5 * 8)


def test_state_is_that_of_the_share():
    params = {"layers": {"0": {"kernel": jax.ShapeDtypeStruct((512, 100), jnp.float32)}}}
    share = int(0.05 * 51200)
    for entries, places in (("adjacent", 4), ("scatter", 4 * share)):
        (row,) = optkit.plan(optkit.badam(ratio=0.05, entries=entries), params).rows
        assert row.state_bytes == 8 * share + places


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_it_does_not_depend_on_sharding(kind):
    mesh = jax.make_mesh((2, 2), ("x", "y"), (kind, kind), devices=jax.devices()[:4])
    tx = optkit.badam(0.1, ratio=0.3, entries="scatter", refresh_every=2)
    alone = {"w": jnp.arange(16.0).reshape(4, 4)}
    split = jax.device_put(alone, NamedSharding(mesh, PartitionSpec("x", "y")))
    want, state = compiled(tx)(alone, tx.init(alone), alone)
    with jax.set_mesh(mesh):
        got, own = compiled(tx)(split, tx.init(split), split)
    np.testing.assert_array_equal(got["w"], want["w"])
    assert jax.tree.map(np.shape, own) == jax.tree.map(np.shape, state)


def test_half_precision_keeps_float32_moments():
    params = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    tx = optkit.badam(0.1, ratio=0.5)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["w"].dtype == jnp.bfloat16
    moments = [x for x in jax.tree.leaves(held(state).inner) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype(jnp.float32)}


def test_the_whole_is_adam_that_begins_anew():
    """All entries at once, for ever: Adam, whichever way they are chosen."""
    (params, *grads) = gradients(3, 4, SHAPES)
    adam = optkit.scale_by_adam(B1, B2, EPS, eps_mode="uncorrected")
    whole = adam.init(params)
    for entries in ("adjacent", "scatter"):
        tx = optkit.badam(1.0, ratio=1.0, entries=entries, refresh_every=100, b1=B1, b2=B2,
                          eps=EPS, weight_decay=0.0)  # fmt: skip
        state, other = tx.init(params), whole
        for g in grads:
            got, state = compiled(tx)(g, state, params)
            want, other = adam.update(g, other)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-5, atol=1e-6), got, want
            )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"ratio": 0.0}, ValueError, "ratio=0.0"),
        ({"ratio": 1.5}, ValueError, "ratio=1.5"),
        ({"ratio": jnp.float32(0.5)}, TypeError, "ratio decides the compiled program"),
        ({"ratio": 0.5, "entries": "dense"}, ValueError, "entries='dense'"),
        ({"ratio": 0.5, "blocks": "leaves"}, ValueError, "blocks='leaves' is of blocks, and ratio"),
        ({"ratio": 0.5, "order": "fixed"}, ValueError, "order='fixed' is of blocks"),
        ({"ratio": 0.5, "first_short": True}, ValueError, "first_short=True is of blocks"),
        ({"ratio": 0.5, "refresh_every": 0}, ValueError, "refresh_every=0"),
    ],
)
def test_wrong_options_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        optkit.badam(**options)
