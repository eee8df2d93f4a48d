"""Shampoo: laws that follow from the maths, and what happens where a root fails."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import optkit

PLAIN: dict[str, Any] = {"graft": "none", "refresh_every": 1, "ridge": 0.0, "method": "eigh"}
FEW = settings(max_examples=10, deadline=None)
SEEDS = st.integers(0, 2**31)
# Programs are few: two shapes, and one transformation for each set of options.
SHAPES = ((4, 4), (3, 5))
scale_by_shampoo = functools.cache(optkit.scale_by_shampoo)
GOOGLE = optkit.scale_by_shampoo_google(start=0)
stepped = functools.cache(lambda tx: jax.jit(tx.update))


def run(tx: optax.GradientTransformation, grads: list[Any]) -> tuple[Any, Any]:
    """The last update of a leaf or a tree, and the state after it."""
    one = not isinstance(grads[0], dict)
    trees = [{"w": g} if one else g for g in grads]
    trees = [jax.tree.map(jnp.float32, tree) for tree in trees]
    state, out = tx.init(trees[0]), None
    for tree in trees:
        out, state = stepped(tx)(tree, state)
    out = jax.tree.map(np.float64, out)
    return out["w"] if one else out, state


def draws(count: int, *shape: int, seed: int = 0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((count, *shape)))


def rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(draws(1, size, size, seed=seed)[0])[0]


def of_spectrum(values: np.ndarray, rows: int, columns: int, seed: int) -> np.ndarray:
    """A matrix with these singular values between random rotations."""
    u, v = rotation(rows, seed), rotation(columns, seed + 1)
    return u[:, : len(values)] * values @ v[:, : len(values)].T


def power(a: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(a)
    return (vectors * values**exponent) @ vectors.T


@FEW
@given(st.lists(st.floats(-2.0, 1.0), min_size=12, max_size=12), SEEDS)
def test_on_diagonals_it_is_adagrad(logs: list[float], seed: int) -> None:
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], 12)
    entries = (10.0 ** np.array(logs) * signs).reshape(3, 4)
    got, _ = run(scale_by_shampoo(0.0, 1.0, eps=1e-12, **PLAIN), [np.diag(x) for x in entries])
    want = entries[-1] / np.sqrt(np.sum(entries**2, axis=0))
    np.testing.assert_allclose(np.diag(got), want, rtol=1e-4)
    np.testing.assert_array_equal(got - np.diag(np.diag(got)), 0.0)


@FEW
@given(
    shape=st.sampled_from(SHAPES),
    kind=st.sampled_from([(None, 1.0), (3.0, 0.7)]),
    logs=st.lists(st.floats(-1.0, 0.3), min_size=6, max_size=6),
    seed=SEEDS,
)
def test_roots_are_those_of_dense_second_moments(
    shape: tuple[int, int], kind: tuple[float | None, float], logs: list[float], seed: int
) -> None:
    """Of gradients whose singular values are drawn, against matrices in float64."""
    exponent, b2 = kind
    spectra = 10.0 ** np.array(logs).reshape(2, 3)
    grads = [of_spectrum(x, *shape, seed + i) for i, x in enumerate(spectra)]
    got, state = run(scale_by_shampoo(0.0, b2, eps=0.1, exponent=exponent, **PLAIN), grads)
    p = exponent or 4.0
    # A sum, or a mean by weights that fall with age.
    weights = (1.0, 1.0) if b2 == 1.0 else (b2 / (1.0 + b2), 1.0 / (1.0 + b2))
    pairs = list(zip(weights, grads, strict=True))
    left = sum(w * g @ g.T for w, g in pairs) + 0.1 * np.eye(shape[0])
    right = sum(w * g.T @ g for w, g in pairs) + 0.1 * np.eye(shape[1])
    want = power(left, -1 / p) @ grads[-1] @ power(right, -1 / p)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.max(np.abs(want)))
    for root, a in zip(state.kronecker.roots, (left, right), strict=True):
        whole = np.linalg.matrix_power(np.float64(root["w"]), int(p)) @ a
        np.testing.assert_allclose(whole, np.eye(len(a)), atol=1e-4)


@FEW
@given(shape=st.sampled_from(SHAPES), seed=SEEDS)
def test_rotated_gradients_give_rotated_updates(shape: tuple[int, int], seed: int) -> None:
    grads = draws(3, *shape, seed=seed)
    u, v = rotation(shape[0], seed + 1), rotation(shape[1], seed + 2)
    tx = scale_by_shampoo(0.5, 0.9, eps=0.1, **PLAIN)
    plain, _ = run(tx, grads)
    turned, _ = run(tx, [u @ g @ v for g in grads])
    np.testing.assert_allclose(turned, u @ plain @ v, atol=1e-4)


CORNERS = {f"w{i}{j}": (slice(i, i + 2), slice(j, j + 2)) for i in (0, 2) for j in (0, 2)}


@pytest.mark.parametrize("graft", ["none", "sgd", "adam"])
@FEW
@given(logs=st.lists(st.floats(-6.0, 6.0), min_size=4, max_size=4), seed=SEEDS)
def test_blocks_are_as_leaves_of_their_own(graft: str, logs: list[float], seed: int) -> None:
    """Blocks of sizes far apart, each as long as its own graft."""
    grads = draws(2, 4, 4, seed=seed)
    for g in grads:
        for size, part in zip(10.0 ** np.array(logs), CORNERS.values(), strict=True):
            g[part] *= size
    tx = scale_by_shampoo(0.5, 0.9, block_size=2, refresh_every=1, graft=graft)
    whole, _ = run(tx, grads)
    apart, _ = run(tx, [{name: g[part] for name, part in CORNERS.items()} for g in grads])
    mean = [(g + 2 * new) / 3 for g, new in zip(*map(np.float32, grads), strict=True)]
    for name, part in CORNERS.items():
        top = np.max(np.abs(apart[name]))
        np.testing.assert_allclose(whole[part], apart[name], atol=1e-5 * top)
        if graft == "sgd":
            norm = np.linalg.norm(np.array(mean)[part])
            np.testing.assert_allclose(np.linalg.norm(whole[part]), norm, rtol=1e-5)


@FEW
@given(shape=st.sampled_from(SHAPES), seed=SEEDS)
def test_blocks_that_hold_a_leaf_leave_it_whole(shape: tuple[int, int], seed: int) -> None:
    grads = draws(2, *shape, seed=seed)
    cut, _ = run(scale_by_shampoo(block_size=max(shape), refresh_every=1), grads)
    whole, _ = run(scale_by_shampoo(block_size=1024, refresh_every=1), grads)
    np.testing.assert_array_equal(cut, whole)


def test_a_failed_root_stays_what_it_was_and_is_counted() -> None:
    grads = draws(2, 4, 4)
    for stagger in (False, True):
        tx = optkit.scale_by_shampoo(0.0, 0.9, **PLAIN | {"stagger": stagger, "eps": 0.1})
        _, state = run(tx, grads)
        broken = state.kronecker.factors[0]["w"].at[0, 0].set(jnp.nan)
        factors = ({"w": broken}, state.kronecker.factors[1])
        state = state._replace(kronecker=state.kronecker._replace(factors=factors))
        out, after = jax.jit(tx.update)({"w": jnp.float32(grads[0])}, state)
        assert int(after.failures) == 1
        old, new = state.kronecker.roots, after.kronecker.roots
        np.testing.assert_array_equal(new[0]["w"], old[0]["w"])
        assert not np.allclose(new[1]["w"], old[1]["w"])
        assert np.isfinite(out["w"]).all()


def test_staggered_roots_have_each_their_turn() -> None:
    params = {"a": jnp.ones((3, 3)), "b": jnp.ones((3, 3))}  # 4 factors of a size, in 2 turns
    tx = optkit.scale_by_shampoo(0.0, 0.9, refresh_every=2, stagger=True, eps=0.1)
    state = tx.init(params)
    changed = []
    for g in draws(2, 3, 3):
        _, new = jax.jit(tx.update)(jax.tree.map(lambda _, g=g: jnp.float32(g), params), state)
        pairs = zip(*(jax.tree.leaves(s.kronecker.roots) for s in (state, new)), strict=True)
        changed.append([bool(jnp.any(x != y)) for x, y in pairs])
        state = new
    first, second = changed
    assert sum(first) == sum(second) == 2
    assert all(x != y for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("dialect", ["facebook", "google"])
@FEW
@given(
    shape=st.sampled_from(SHAPES), rank=st.integers(0, 2), log=st.floats(-30.0, 25.0), seed=SEEDS
)
@example(shape=(3, 5), rank=1, log=25.0, seed=0)
@example(shape=(3, 5), rank=1, log=-30.0, seed=0)
def test_zero_and_low_rank_statistics_give_finite_updates(
    dialect: str, shape: tuple[int, int], rank: int, log: float, seed: int
) -> None:
    facebook = scale_by_shampoo(refresh_every=1)
    tx = facebook if dialect == "facebook" else GOOGLE
    one = 10.0**log * of_spectrum(np.ones(rank), *shape, seed)
    got, _ = run(tx, [one, 2 * one])
    assert np.isfinite(got).all()
    assert np.any(got) == (rank > 0)
