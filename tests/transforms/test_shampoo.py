"""Shampoo: laws that follow from the maths, and what happens where a root fails."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit

PLAIN: dict[str, Any] = {"graft": "none", "refresh_every": 1, "ridge": 0.0, "method": "eigh"}


def run(tx: optax.GradientTransformation, grads: list[np.ndarray]) -> tuple[np.ndarray, Any]:
    """The last update of a leaf, and the state after it."""
    update = jax.jit(tx.update)
    state, out = tx.init({"w": jnp.float32(grads[0])}), None
    for g in grads:
        out, state = update({"w": jnp.float32(g)}, state)
    return np.float64(out["w"]), state


def draws(count: int, *shape: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).standard_normal((count, *shape)))


def power(a: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors = np.linalg.eigh(a)
    return (vectors * values**exponent) @ vectors.T


def test_on_diagonals_it_is_adagrad() -> None:
    grads = [np.diag(x) for x in draws(3, 4)]
    got, _ = run(optkit.scale_by_shampoo(0.0, 1.0, eps=1e-12, **PLAIN), grads)
    total = sum(np.diag(g) ** 2 for g in grads)
    np.testing.assert_allclose(np.diag(got), np.diag(grads[-1]) / np.sqrt(total), rtol=1e-4)


def test_roots_are_those_of_dense_second_moments() -> None:
    grads = draws(3, 4, 4)
    got, _ = run(optkit.scale_by_shampoo(0.0, 1.0, eps=0.1, **PLAIN), grads)
    left = sum(g @ g.T for g in grads) + 0.1 * np.eye(4)
    right = sum(g.T @ g for g in grads) + 0.1 * np.eye(4)
    want = power(left, -0.25) @ grads[-1] @ power(right, -0.25)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_rotated_gradients_give_rotated_updates() -> None:
    grads = draws(3, 4, 4)
    u, v = (np.linalg.qr(x)[0] for x in draws(2, 4, 4))
    tx = optkit.scale_by_shampoo(0.5, 0.9, eps=0.1, **PLAIN)
    plain, _ = run(tx, grads)
    turned, _ = run(tx, [u @ g @ v for g in grads])
    np.testing.assert_allclose(turned, u @ plain @ v, atol=1e-4)


def test_each_block_is_a_problem_as_long_as_its_graft() -> None:
    grads = draws(2, 4, 4)
    tx = optkit.scale_by_shampoo(0.0, 0.9, block_size=2, refresh_every=1, graft="sgd")
    whole, _ = run(tx, grads)
    for i, j in ((0, 0), (0, 2), (2, 0), (2, 2)):
        part = (slice(i, i + 2), slice(j, j + 2))
        alone, _ = run(tx, [g[part] for g in grads])
        np.testing.assert_allclose(whole[part], alone, atol=1e-5)
        norm = np.linalg.norm(grads[-1][part])
        np.testing.assert_allclose(np.linalg.norm(whole[part]), norm, rtol=1e-5)


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


def test_zero_and_low_rank_statistics_give_finite_updates() -> None:
    ones = np.ones((3, 5))
    for grads in ([0.0 * ones] * 2, [ones, 2 * ones], [1e25 * ones] * 2, [1e-30 * ones] * 2):
        for tx in (
            optkit.scale_by_shampoo(refresh_every=1),
            optkit.scale_by_shampoo_google(start=0),
        ):
            assert np.isfinite(run(tx, grads)[0]).all()
