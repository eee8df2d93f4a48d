"""PSGD's factors against dense matrices, and the laws of fitting them."""

import functools
import itertools
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import optkit
from optkit.linalg import whitening

seeds = st.integers(0, 2**32 - 1)
fit_whitening = jax.jit(whitening.fit_whitening)
norm_lower_bound = jax.jit(whitening.norm_lower_bound)


def dense(factor):
    return np.diag(factor) if factor.ndim == 1 else factor


def everywhere(matrices, x):
    """A tensor multiplied along every axis."""
    axes = string.ascii_lowercase[: x.ndim]
    for place, a in enumerate(matrices):
        new = axes[:place] + "z" + axes[place + 1 :]
        x = np.einsum(f"z{axes[place]},{axes}->{new}", a, x)
    return x


def bound(a):
    row = a[np.argmax((a**2).sum(1))] @ a
    return np.linalg.norm(a @ row) / np.linalg.norm(row)


def one_fit(factors, g, v, rate):
    """The definition in float64."""
    whole = [dense(q) for q in factors]
    a = everywhere(whole, g)
    b = everywhere([np.linalg.inv(q).T for q in whole], v)
    out = []
    for place, q in enumerate(factors):
        rest = tuple(i for i in range(g.ndim) if i != place)
        one, two = (np.tensordot(x, x, (rest, rest)) for x in (a, b))
        if q.ndim == 1:
            one, two = np.diag(one), np.diag(two)
            out.append(q - rate * (one - two) * q / (one + two).max())
        else:
            out.append(q - rate * np.triu(one - two) @ q / bound(one + two))
    return out


@pytest.mark.parametrize(
    ("shape", "flat"), [((3, 4), (0, 0)), ((3, 4), (0, 1)), ((2, 3, 4), (0, 1, 0)), ((5,), (0,))]
)
def test_a_fit_is_its_definition(shape: tuple, flat: tuple) -> None:
    random = np.random.default_rng(0)
    g, v = random.standard_normal(shape), random.standard_normal(shape)
    factors = [
        np.diag(np.ones(n)) + 0.3 * np.triu(random.standard_normal((n, n)), 1)
        if not on_diagonal
        else random.uniform(0.5, 2.0, n)
        for n, on_diagonal in zip(shape, flat, strict=True)
    ]
    single = lambda x: jnp.asarray(x, jnp.float32)  # noqa: E731
    got = fit_whitening([single(q) for q in factors], single(g), single(v), 0.3)
    for q, want in zip(got, one_fit(factors, g, v, 0.3), strict=True):
        np.testing.assert_allclose(q, want, atol=1e-5)
    # Of two in a batch each is as alone, and so is one of another scale.
    twice = [jnp.stack([single(q)] * 2) for q in factors]
    huge = 2.0**60
    again = fit_whitening(
        twice, huge * jnp.stack([single(g)] * 2), huge * jnp.stack([single(v)] * 2), 0.3
    )
    for q, want in zip(again, got, strict=True):
        np.testing.assert_allclose(q, np.stack([want] * 2), rtol=1e-6, atol=1e-6)


@given(seeds, st.integers(1, 6))
def test_the_bound_is_within_sqrt_2_of_the_norm(seed: int, rank: int) -> None:
    x = np.random.default_rng(seed).standard_normal((6, rank))
    a = x @ x.T
    norm = np.linalg.norm(a, 2)
    got = float(norm_lower_bound(jnp.asarray(a, jnp.float32)))
    assert norm / np.sqrt(2.0) * (1 - 1e-5) <= got <= norm * (1 + 1e-5)


SHAPES = {"w": (3, 4), "bias": (5,), "gain": ()}


@functools.lru_cache
def compiled(**options):
    tx = optkit.scale_by_psgd_kron(**options)
    return tx.init, jax.jit(tx.update)


def run(scale, seed=0, steps=6, **options):
    """Updates and states of some steps."""
    init, update = compiled(**options)
    random = np.random.default_rng(seed)
    state, out = init({k: jnp.zeros(s) for k, s in SHAPES.items()}), []
    for _ in range(steps):
        grads = {k: jnp.float32(scale * random.standard_normal(s)) for k, s in SHAPES.items()}
        u, state = update(grads, state)
        out.append((u, state))
    return out


@given(seeds, st.sampled_from([0.0, 1e-30, 1e-3, 1.0, 1e25]))
def test_factors_keep_their_form_and_updates_their_size(seed: int, scale: float) -> None:
    for u, state in run(scale, seed, preconditioner_lr=0.6):
        for x in jax.tree.leaves(u):
            assert np.sqrt(np.mean(np.square(np.float64(x)))) <= 1.1 * (1 + 1e-5)
        for tree in state.kronecker:
            q = np.asarray(tree["w"])
            assert np.array_equal(q, np.triu(q)) and (np.diag(q) > 0).all()
        assert all((x > 0).all() for x in jax.tree.leaves(state.entries))
        assert int(state.failures) == 0


def test_the_scale_of_the_loss_is_a_scale_of_the_factors() -> None:
    """Q^T Q goes as the inverse root: where it starts so, updates are the same."""
    small = run(1.0, init_scale=1.0)
    large = run(2.0**20, init_scale=2.0**-10)
    for (u, _), (v, _) in zip(small, large, strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), u, v)


def test_stationary_gradients_are_whitened() -> None:
    m, n, steps = 3, 4, 4000
    random = np.random.default_rng(1)
    roots = [
        np.linalg.qr(random.standard_normal((k, k)))[0] * np.geomspace(3, 0.3, k) for k in (m, n)
    ]
    left, right = (jnp.asarray(x, jnp.float32) for x in roots)

    def step(factors: tuple, of: tuple) -> tuple:
        key, rate = of
        z, v = jax.random.normal(key, (2, m, n))
        return fit_whitening(factors, left @ z @ right.T, v, rate), None

    keys = jax.random.split(jax.random.key(0), steps)
    rates = jnp.geomspace(0.3, 0.003, steps)
    (ql, qr), _ = jax.lax.scan(step, (jnp.eye(m), jnp.eye(n)), (keys, rates))
    a, b = (np.float64(q.T @ q) @ root for q, root in ((ql, roots[0]), (qr, roots[1])))
    whitened = np.kron(a @ a.T, b @ b.T)
    np.testing.assert_allclose(whitened, np.eye(m * n), atol=0.2)


def test_factors_are_fitted_when_it_is_their_time() -> None:
    states = [state for _, state in run(1.0, steps=7, update_probability=0.34)]
    leaves = [jax.tree.leaves((s.kronecker, s.entries)) for s in states]
    changed = [
        any(bool(jnp.any(x != y)) for x, y in zip(a, b, strict=True))
        for a, b in itertools.pairwise(leaves)
    ]
    # After 3 updates, and after 3 more.
    assert changed == [False, True, False, False, True, False]
    assert [int(s.since) for s in states] == [1, 2, 0, 1, 2, 0, 1]


def test_what_is_not_finite_leaves_the_factors_alone() -> None:
    init, update = compiled(update_probability=1.0)
    zeros = {k: jnp.zeros(s) for k, s in SHAPES.items()}
    _, state = update(jax.tree.map(jnp.ones_like, zeros), init(zeros))
    _, after = update({**zeros, "w": jnp.full((3, 4), jnp.nan)}, state)
    assert int(after.failures) == 1
    for old, new in zip(state.kronecker, after.kronecker, strict=True):
        np.testing.assert_array_equal(old["w"], new["w"])


def test_wrong_probes_and_probabilities_are_named() -> None:
    tx, params = optkit.psgd_kron(0.1), {"w": jnp.ones((2, 3))}
    with pytest.raises(ValueError, match="w: shape"):
        tx.update(params, tx.init(params), params, probes={"w": jnp.ones((3, 2))})
    with pytest.raises(ValueError, match="update_probability=0"):
        optkit.psgd_kron(update_probability=0)
    with pytest.raises(ValueError, match=r"least=0\.5 and most=0\.1"):
        optkit.psgd_update_probability(0.1, 0.5)
