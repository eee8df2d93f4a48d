"""DADAO: graphs, clocks, sums that stay 0, and linear convergence."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit

games = optkit.games
RING = [(i, (i + 1) % 6) for i in range(6)]


def test_a_graph_is_what_its_laplacian_says() -> None:
    # Of a complete graph the Laplacian's eigenvalues are n/|E|, an edge's resistance is 2/n.
    complete = games.graph(4, [(i, j) for i in range(4) for j in range(i)])
    chi_1, chi_2 = 6 / 4, 0.5 * 6 * 2 / 4
    np.testing.assert_allclose(complete.rate, np.sqrt(2 * chi_1 * chi_2))
    np.testing.assert_allclose(complete.chi, chi_1 / complete.rate)
    ring = games.graph(6, RING)
    chi_1, chi_2 = 6 / (2 - 2 * np.cos(2 * np.pi / 6)), 0.5 * 6 * 5 / 6
    np.testing.assert_allclose(ring.rate, np.sqrt(2 * chi_1 * chi_2))
    np.testing.assert_allclose(ring.chi, chi_1 / ring.rate)


def test_events_come_at_their_rates_from_everywhere() -> None:
    ring = games.graph(6, RING)
    events = jax.device_get(games.sample_events(jax.random.key(0), ring, 20_000))
    total = 6 + ring.rate
    assert (events.wait >= 0).all()
    np.testing.assert_allclose(events.wait.mean() * total, 1.0, rtol=0.03)
    np.testing.assert_allclose(events.wait.std() * total, 1.0, rtol=0.05)
    np.testing.assert_allclose(events.gradient.mean(), 6 / total, rtol=0.03)
    alone = np.bincount(events.first[events.gradient], minlength=6) / events.gradient.sum()
    np.testing.assert_allclose(alone, 1 / 6, rtol=0.1)
    sent = ~events.gradient
    pairs = {*zip(events.first[sent].tolist(), events.second[sent].tolist(), strict=True)}
    assert pairs == set(RING)


def quadratics(nodes: int) -> tuple[np.ndarray, np.ndarray, float, float]:
    """Hessians and right sides, strong convexity and smoothness."""
    random = np.random.default_rng(0)
    hessians = []
    for _ in range(nodes):
        q, _ = np.linalg.qr(random.standard_normal((3, 3)))
        hessians.append((q * np.array([0.5, 1.0, 4.0])) @ q.T)
    return np.array(hessians), random.standard_normal((nodes, 3)), 0.5, 4.0


def test_it_converges_linearly_and_messages_sum_to_zero_at_one_time() -> None:
    hessian, b, mu, smoothness = quadratics(6)
    ring = games.graph(6, RING)
    solution = np.linalg.solve(hessian.sum(0), b.sum(0))
    with jax.enable_x64(True):
        solver = games.dadao(mu, smoothness, ring.chi)
        h, right = jnp.asarray(hessian), jnp.asarray(b)

        def gradient(node: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.sum(h[node] * x[None, :], axis=1) - right[node]

        def body(state: Any, event: Any) -> tuple[Any, jax.Array]:
            state = solver.step(state, gradient, event)
            return state, state.x

        events = games.sample_events(jax.random.key(1), ring, 4000)
        start = solver.init(jnp.zeros((6, 3)))
        state, points = jax.jit(lambda s, e: jax.lax.scan(body, s, e))(start, events)
        away = np.mean(np.sum((np.asarray(points) - solution) ** 2, -1), -1)
        first, middle, last = away[[999, 1999, 3999]]
        assert middle < first / 5 and last < middle / 25 and last < 1e-3, away[::1000]
        together = jax.jit(solver.together)(state)
        np.testing.assert_array_equal(together.age, 0.0)
        for moved in (together.z, together.z_tilde):
            size = np.abs(moved).max()
            np.testing.assert_allclose(np.sum(moved, 0), 0.0, atol=1e-12 * max(size, 1.0))
        # Not in the arrays as they lie: nodes are at times of their own.
        assert np.abs(np.sum(state.z_tilde, 0)).max() > 1e-9


def test_trees_keep_their_leaves() -> None:
    solver = games.dadao(1.0, 2.0, 0.5)
    x = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    event = games.Events(jnp.float32(0.3), jnp.bool_(True), jnp.int32(1), jnp.int32(0))
    state = solver.step(solver.init(x), lambda i, x: x, event)
    np.testing.assert_allclose(state.x["w"][:, 0], state.x["b"], rtol=1e-6)
    assert state.x["b"][0] == 1.0 and state.x["b"][1] != 1.0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: games.graph(3, [(0, 1)]), "do not connect 3 nodes"),
        (lambda: games.graph(3, [(0, 3)]), r"edge \(0, 3\)"),
        (lambda: games.graph(3, [(1, 1)]), "two different nodes"),
        (lambda: games.dadao(1.0, 0.5, 1.0), "smoothness=0.5"),
        (lambda: games.dadao(0.0, 0.5, 1.0), "mu=0.0 must be above 0"),
        (lambda: games.dadao(1.0, 1.0, 0.0), "chi=0.0 must be above 0"),
    ],
)
def test_wrong_use_is_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
