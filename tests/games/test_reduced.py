"""Loopless SVRG: unbiased, still at the solution, and its anchor is a copy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import optkit
from tests.games.problems import quadratic_game

games = optkit.games
NODES, SAMPLES = 4, 3
# Three samples of the operator of each node, around its own.
PARTS = [quadratic_game(NODES, 2, seed) for seed in range(SAMPLES)]
MATRIX = jnp.stack([part.matrix for part in PARTS])
SHIFT = jnp.stack([part.shift for part in PARTS])
WHOLE = PARTS[0]._replace(matrix=MATRIX.mean(0), shift=SHIFT.mean(0))
REDUCED = games.loopless()


def sample(index: Any) -> Any:
    return PARTS[0]._replace(matrix=MATRIX[index], shift=SHIFT[index]).operator


def test_the_mean_over_samples_is_the_operator() -> None:
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, NODES, 4)), jnp.float32)
    state = REDUCED.init(z[0], WHOLE.operator)
    drawn = [REDUCED.operator(state, sample(i))(z[1]) for i in range(SAMPLES)]
    np.testing.assert_allclose(np.mean(drawn, 0), WHOLE.operator(z[1]), rtol=1e-4, atol=1e-5)
    for i in range(SAMPLES):  # at the anchor it has no variance
        same = REDUCED.operator(state, sample(i))(z[0])
        np.testing.assert_allclose(same, WHOLE.operator(z[0]), rtol=1e-4, atol=1e-5)


def test_the_anchor_moves_when_it_is_told_to() -> None:
    z = jnp.ones((NODES, 4))
    state = REDUCED.init(jnp.zeros((NODES, 4)), WHOLE.operator)
    stayed = REDUCED.move(state, z, WHOLE.operator, False)
    np.testing.assert_array_equal(stayed.anchor, 0.0)
    moved = REDUCED.move(state, z, WHOLE.operator, True)
    np.testing.assert_array_equal(moved.anchor, z)
    np.testing.assert_allclose(moved.whole, WHOLE.operator(z), rtol=1e-6)


def test_samples_reach_the_solution_with_it_and_not_without() -> None:
    solver = games.proxskip_vip(0.15, 0.3)
    solution = np.linalg.solve(np.mean(WHOLE.matrix, 0), -np.mean(WHOLE.shift, 0))

    def run(reduce: bool) -> float:
        def body(carry: Any, drawn: Any) -> tuple[Any, None]:
            state, memory = carry
            index, meets, moves = drawn
            plain = sample(index)
            operator = REDUCED.operator(memory, plain) if reduce else plain
            after = solver.step(state, operator, meets)
            return (after, REDUCED.move(memory, state.z, WHOLE.operator, moves)), None

        random = np.random.default_rng(0)
        drawn = (
            jnp.asarray(random.integers(0, SAMPLES, 2000)),
            jnp.asarray(random.random(2000) < 0.3),
            jnp.asarray(random.random(2000) < 0.2),
        )
        zero = jnp.zeros((NODES, 4))
        start = solver.init(zero), REDUCED.init(zero, WHOLE.operator)
        (state, _), _ = jax.jit(lambda c, d: jax.lax.scan(body, c, d))(start, drawn)
        return float(np.linalg.norm(np.mean(state.z, 0) - solution))

    assert run(reduce=True) < 1e-4
    assert run(reduce=False) > 1e-2
