"""SOAP against its definition in float64, and the laws of working in a rotated basis."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.linalg.eigenbasis import eigenbasis, refreshed_eigenbasis

SIDE = 4
# Rounding beside the diagonal, of which the first gradient has nothing else, is far below eps.
RATE, B1, B2, EPS, DECAY = 0.1, 0.8, 0.9, 1e-2, 0.5
seeds = st.integers(0, 2**32 - 1)


def gradients(seed, steps, shape=(SIDE, SIDE)):
    """Well-conditioned matrices, so that eigenvectors are those of any LAPACK."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(steps):
        u, _, v = np.linalg.svd(random.standard_normal(shape), full_matrices=False)
        values = np.linspace(2.0, 0.5, min(shape)) * random.uniform(0.9, 1.1, min(shape))
        out.append((u * values) @ v)
    return out


@functools.lru_cache
def compiled(factory, **options):
    tx = getattr(optkit, factory)(**dict(options))
    return tx.init, jax.jit(tx.update)


def run(grads, factory="soap", **options):
    """Parameters after each step from ones, and the last state."""
    init, update = compiled(factory, **options)
    params = {"w": jnp.ones(grads[0].shape, jnp.float32)}
    state, path = init(params), []
    for g in grads:
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.float64(params["w"]))
    return path, state


def followed(q, a, refresh):
    """An eigenbasis one step on, and the order of its columns."""
    order = np.argsort(-np.diag(q.T @ a @ q), kind="stable")
    if refresh == "eigh":
        return np.linalg.eigh(a)[1][:, ::-1], order
    return np.linalg.qr(a @ q[:, order])[0], order


def definition(grads, every, refresh, first_step, normalize):
    """SOAP in float64, with M kept in its own coordinates."""
    w, m, v = np.ones((SIDE, SIDE)), np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
    left, right, n, path = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE)), 0, []
    for t, g in enumerate(grads):
        left, right = B2 * left + (1 - B2) * g @ g.T, B2 * right + (1 - B2) * g.T @ g
        if t == 0:
            ql, qr = (np.linalg.eigh(a)[1][:, ::-1] for a in (left, right))
        if t > 0 or first_step == "step":
            n += 1
            m = B1 * m + (1 - B1) * g
            v = B2 * v + (1 - B2) * (ql.T @ g @ qr) ** 2
            u = ql @ ((ql.T @ m @ qr) / (np.sqrt(v) + EPS)) @ qr.T
            u = u / np.sqrt(np.mean(u**2)) if normalize else u
            w = w - RATE * np.sqrt(1 - B2**n) / (1 - B1**n) * u
            w = w * (1 - RATE * DECAY)
            if n % every == 0:
                ql, first = followed(ql, left, refresh)
                qr, second = followed(qr, right, refresh)
                v = v[first][:, second]
        path.append(w)
    return path


@pytest.mark.parametrize(
    ("refresh", "first_step", "normalize"),
    [("qr", "skip", False), ("qr", "step", True), ("eigh", "skip", True), ("eigh", "step", False)],
)
def test_soap_is_its_definition(refresh, first_step, normalize):
    grads = gradients(3, 7)
    got, _ = run(
        grads,
        learning_rate=RATE,
        b1=B1,
        b2=B2,
        eps=EPS,
        weight_decay=DECAY,
        refresh_every=2,
        refresh=refresh,
        first_step=first_step,
        normalize_grads=normalize,
    )
    want = definition(grads, 2, refresh, first_step, normalize)
    np.testing.assert_allclose(got, want, atol=2e-4)
    assert first_step == "step" or np.array_equal(got[0], np.ones((SIDE, SIDE)))


PLAIN = {"learning_rate": RATE, "b1": B1, "b2": B2, "eps": EPS, "weight_decay": 0.0}


@given(seeds)
def test_bases_stay_orthonormal_and_updates_turn_with_the_gradients(seed):
    random = np.random.default_rng(seed)
    left, right = (np.linalg.qr(random.standard_normal((SIDE, SIDE)))[0] for _ in range(2))
    grads = gradients(seed, 6)
    ones = np.ones((SIDE, SIDE))
    got, state = run(grads, refresh_every=2, **PLAIN)
    turned, _ = run([left @ g @ right for g in grads], refresh_every=2, **PLAIN)
    for a, b in zip(got, turned, strict=True):
        np.testing.assert_allclose(left @ (a - ones) @ right, b - ones, atol=5e-3)
    for tree in state[0].kronecker.bases:
        q = np.float64(tree["w"])
        np.testing.assert_allclose(q.T @ q, np.eye(SIDE), atol=1e-5)


def replaced(state, change):
    """A state of SOAP whose bases are changed."""
    held = state[0].kronecker
    bases = tuple(jax.tree.map(change, tree) for tree in held.bases)
    return (state[0]._replace(kronecker=held._replace(bases=bases)), *state[1:])


def continued(state, grads, **options):
    _, update = compiled("soap", **options)
    params, path = {"w": jnp.ones((SIDE, SIDE))}, []
    for g in grads:
        updates, state = update({"w": jnp.asarray(g, jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        path.append(params["w"])
    return path


def test_signs_of_columns_do_not_show_and_the_identity_is_adam():
    grads = gradients(5, 6)
    options = {"refresh_every": 3, **PLAIN, "weight_decay": DECAY}
    _, state = run(grads[:1], **options)
    want = continued(state, grads[1:], **options)
    signs = jnp.where(jnp.arange(SIDE) % 2 == 0, 1.0, -1.0)[None]
    got = continued(replaced(state, lambda q: q * signs), grads[1:], **options)
    np.testing.assert_allclose(got, want, atol=1e-5)
    held = continued(replaced(state, lambda q: jnp.eye(SIDE)), grads[1:3], **options)
    adam = optkit.scale_by_adam(B1, B2, EPS, eps_mode="uncorrected")
    tx = optkit.descend(adam, RATE, weight_decay=DECAY, decay="after")
    params = {"w": jnp.ones((SIDE, SIDE))}
    own = tx.init(params)
    for g, after in zip(grads[1:3], held, strict=True):  # the first gradient is dropped
        updates, own = tx.update({"w": jnp.asarray(g, jnp.float32)}, own, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(after, params["w"], atol=1e-5)


def test_what_turns_with_the_gradient_does_not_see_the_basis() -> None:
    """Momentum is carried from basis to basis without loss."""
    inner = optkit.momentum(0.9, kind="heavy_ball")
    tx = optkit.in_rotated_basis(inner, refresh_every=2, first_step="step")
    params = {"w": jnp.ones((3, SIDE)), "bias": jnp.ones(3)}
    update, plain = jax.jit(tx.update), inner.init(params)
    state = tx.init(params)
    for g in gradients(7, 5, (3, SIDE)):
        grads = {"w": jnp.asarray(g, jnp.float32), "bias": jnp.ones(3)}
        got, state = update(grads, state, params)
        want, plain = inner.update(grads, plain, params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_staggered_factors_have_their_turns() -> None:
    every = 3
    tx = optkit.in_rotated_basis(
        optkit.scale_by_adam(), refresh_every=every, stagger=True, first_step="step"
    )
    params = {name: jnp.ones((SIDE, SIDE)) for name in "ab"}
    update, state, changes = jax.jit(tx.update), tx.init(params), []
    for g, h in zip(gradients(1, 8), gradients(2, 8), strict=True):
        grads = {"a": jnp.asarray(g, jnp.float32), "b": jnp.asarray(h, jnp.float32)}
        before = jax.tree.leaves(state.kronecker.bases)
        _, state = update(grads, state, params)
        after = jax.tree.leaves(state.kronecker.bases)
        changes.append([bool(jnp.any(x != y)) for x, y in zip(before, after, strict=True)])
    assert all(changes[0])  # the first bases
    rounds = np.array(changes[2:])
    for start in range(len(rounds) - every + 1):
        assert (rounds[start : start + every].sum(0) == 1).all()
    assert rounds.sum(1).max() == 2  # of 4 factors within 3 steps


@pytest.mark.parametrize("method", ["qr", "eigh"])
def test_a_basis_that_fails_leaves_the_last_good_one(method: str) -> None:
    tx = optkit.in_rotated_basis(
        optkit.scale_by_adam(), refresh_every=1, refresh=method, first_step="step"
    )
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}
    update = jax.jit(tx.update)
    grads = {"a": jnp.diag(jnp.arange(1.0, 4.0)), "b": jnp.diag(jnp.arange(1.0, 4.0))}
    _, state = update(grads, tx.init(params), params)
    left, right = state.kronecker.statistics
    broken = state.kronecker._replace(statistics=({**left, "a": left["a"] * jnp.nan}, right))
    _, after = update(grads, state._replace(kronecker=broken), params)
    assert int(state.failures) == 0 and int(after.failures) == 1
    np.testing.assert_array_equal(after.kronecker.bases[0]["a"], state.kronecker.bases[0]["a"])
    assert np.isfinite(after.kronecker.bases[1]["a"]).all()


@given(seeds, st.integers(0, 4), st.sampled_from([0.0, 1e-12, 1e12]))
def test_any_rank_and_scale_give_orthonormal_bases(seed: int, rank: int, scale: float) -> None:
    x = np.random.default_rng(seed).standard_normal((2, SIDE, rank))
    a = jnp.asarray(scale * x @ x.swapaxes(-1, -2), jnp.float32)
    first, good = eigenbasis(a)
    for method in ("qr", "eigh"):
        q, order, fine = refreshed_eigenbasis(a, first, method)
        assert good.all() and fine.all()
        np.testing.assert_allclose(q.mT @ q, np.broadcast_to(np.eye(SIDE), q.shape), atol=1e-5)
        np.testing.assert_array_equal(np.sort(order, -1), np.broadcast_to(range(SIDE), (2, SIDE)))
        if rank == 0 or scale == 0.0:
            np.testing.assert_array_equal(q, first)


def test_what_cannot_be_carried_is_named() -> None:
    params = {"w": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match=r"'w'.*transport=\{'momentum': 'rotate'"):
        optkit.in_rotated_basis(optkit.sm3(0.1)).init(params)
    with pytest.raises(ValueError, match="merge_small_dims"):
        optkit.soap(merge_small_dims=True)
    with pytest.raises(ValueError, match="transport='turn' is not one of"):
        optkit.in_rotated_basis(optkit.scale_by_adam(), transport={"mu": "turn"})


@pytest.mark.parametrize("recipe", [optkit.soap, optkit.psgd_kron, optkit.shampoo])
def test_an_axis_of_one_entry_keeps_the_state_and_soaps_updates(recipe: Any) -> None:
    """With it a factor has the shape of the tensor as a matrix, and is none for all that."""
    first = {optkit.soap: {"first_step": "step"}, optkit.psgd_kron: {"update_probability": 1.0}}
    given = first.get(recipe, {"refresh_every": 1, "preconditioned": "*", "dims": "tensor"})
    given |= {} if recipe is optkit.shampoo else {"axes": "all"}
    g = jax.random.normal(jax.random.key(0), (4, 4))
    updates = []
    for shape in ((4, 4), (1, 4, 4)):
        tx = recipe(0.1, weight_decay=0.0, **given)
        params = {"w": g.reshape(shape)}
        probes = {} if recipe is not optkit.psgd_kron else {"probes": params, "balance": False}
        u, state = tx.update(params, before := tx.init(params), params, **probes)
        sizes = [[x.shape for x in jax.tree.leaves(s)] for s in (before, state)]
        assert sizes[0] == sizes[1]
        updates.append(u["w"].reshape(4, 4))
    if recipe is optkit.soap:  # whose other factors do not see the one of one number
        np.testing.assert_allclose(updates[1], updates[0], rtol=1e-4, atol=1e-6)
