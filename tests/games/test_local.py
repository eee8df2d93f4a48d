"""Local solvers: what they keep, what they reduce to, and where they end."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import optkit
from optkit.games import Solver
from tests.conformance.test_sharding import mesh_of
from tests.games.problems import Game, quadratic_game

games = optkit.games
GAME = quadratic_game(8, 2)
ZERO = jnp.zeros((8, 4))


def scanned(solver: Solver, game: Game, meets: Any, start: jax.Array) -> Any:
    """The last state of a run."""

    def body(state: Any, meet: jax.Array) -> tuple[Any, None]:
        return solver.step(state, game.operator, meet), None

    run = jax.jit(lambda z, m: jax.lax.scan(body, solver.init(z), m)[0])
    return run(start, jnp.asarray(meets))


SKIP = games.proxskip_vip(0.3, 0.4)
SKIPPED = jax.jit(SKIP.step, static_argnums=1)


@settings(max_examples=15, deadline=None)
@given(meets=st.lists(st.booleans(), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_controls_sum_to_zero_and_nodes_agree_after_a_meeting(meets: list[bool], seed: int) -> None:
    z = jnp.asarray(np.random.default_rng(seed).standard_normal((8, 4)), jnp.float32)
    state = SKIP.init(z)
    for meet in meets:
        state = SKIPPED(state, GAME.operator, meet)
        np.testing.assert_allclose(np.sum(state.control, axis=0), 0.0, atol=2e-5)
        if meet:
            chex.assert_trees_all_equal(state.z, games.on_nodes(state.z[0], 8))
    assert int(state.count) == len(meets)


def test_with_equal_nodes_that_always_meet_it_is_gradient_descent() -> None:
    same = GAME._replace(
        matrix=jnp.repeat(GAME.matrix[:1], 8, 0), shift=jnp.repeat(GAME.shift[:1], 8, 0)
    )
    state = scanned(games.proxskip_vip(0.3, 1.0), same, [True] * 5, ZERO)
    z = np.zeros(4)
    for _ in range(5):
        z = z - 0.3 * (np.asarray(GAME.matrix[0]) @ z + np.asarray(GAME.shift[0]))
    np.testing.assert_allclose(state.z, np.tile(z, (8, 1)), rtol=1e-5)


def test_the_solution_with_its_controls_stays() -> None:
    with jax.enable_x64(True):
        game = quadratic_game(8, 2)
        z = games.on_nodes(jnp.asarray(game.solution), 8)
        state = SKIP.init(z)._replace(control=game.operator(z))
        for meet in (False, True, False):
            state = SKIP.step(state, game.operator, meet)
        np.testing.assert_allclose(state.z, z, atol=1e-12)
        np.testing.assert_allclose(state.control, game.operator(z), atol=1e-12)


def test_proxskip_solves_a_game_that_local_gda_does_not() -> None:
    with jax.enable_x64(True):
        game = quadratic_game(20, 10)
        p = float(np.sqrt(game.step_size * game.mu))
        coins = np.random.default_rng(0).random(4000) < p
        coins[np.flatnonzero(coins)[100:]] = False
        coins = coins[: np.flatnonzero(coins)[-1] + 1]
        zero = jnp.zeros((20, 20))
        skip = scanned(games.proxskip_vip(game.step_size, p), game, coins, zero)
        every = round(1 / p)
        meets = np.arange(1, 100 * every + 1) % every == 0
        local = scanned(games.local_gda(game.step_size), game, meets, zero)
        tracked = games.fedgda_gt(game.step_size / every, every)
        rounds = jax.jit(
            lambda z: jax.lax.fori_loop(
                0, 200, lambda _, s: tracked.step(s, game.operator), tracked.init(z)
            )
        )(zero)
        assert game.error(skip.z) < 1e-7
        assert game.error(local.z) > 0.1
        assert game.error(rounds.z) < 1e-7


def test_a_projection_keeps_a_constraint_at_the_solution() -> None:
    target = jnp.array([[1.0, -2.0], [5.0, -4.0]])
    solver = games.proxskip_vip(0.5, 0.5, prox=lambda z, far: jnp.clip(z, -1.0, 2.0))
    state = solver.init(jnp.zeros((2, 2)))
    step = jax.jit(lambda s, meet: solver.step(s, lambda z: z - target, meet))
    for t in range(80):
        state = step(state, t % 2 == 1)
    np.testing.assert_allclose(state.z, [[2.0, -1.0]] * 2, atol=1e-4)


def test_a_proximal_point_gets_its_step_size() -> None:
    seen = []

    def prox(z: jax.Array, far: Any) -> jax.Array:
        seen.append(far)
        return z

    solver = games.proxskip_vip(0.5, 0.25, prox=prox)
    solver.step(solver.init(ZERO), GAME.operator, True)
    assert float(seen[0]) == 2.0


def test_local_gda_that_always_meets_is_descent_on_the_mean() -> None:
    state = scanned(games.local_gda(0.3), GAME, [True] * 4, ZERO)
    z, matrix, shift = np.zeros(4), np.mean(GAME.matrix, 0), np.mean(GAME.shift, 0)
    for _ in range(4):
        z = z - 0.3 * (matrix @ z + shift)
    np.testing.assert_allclose(state.z[3], z, rtol=1e-5)


def test_extragradient_ends_where_descent_ascent_turns_in_circles() -> None:
    def bilinear(z: jax.Array) -> jax.Array:  # min over x, max over y of x*y
        return jnp.stack([z[:, 1], -z[:, 0]], axis=1)

    game = GAME._replace(matrix=jnp.array([[[0.0, 1.0], [-1.0, 0.0]]]), shift=jnp.zeros((1, 2)))
    start, meets = jnp.array([[1.0, 1.0]]), [False] * 60
    np.testing.assert_allclose(game.operator(start), bilinear(start))
    assert np.linalg.norm(scanned(games.extragradient(0.5), game, meets, start).z) < 1e-2
    assert np.linalg.norm(scanned(games.local_gda(0.5), game, meets, start).z) > 10.0
    state = games.extragradient(0.5, 0.25).step(games.extragradient(0.5).init(start), bilinear, 0)
    ahead = np.array([1.0, 1.0]) - 0.5 * np.array([1.0, -1.0])
    np.testing.assert_allclose(state.z[0], [1.0 - 0.25 * ahead[1], 1.0 + 0.25 * ahead[0]])


def test_fedgda_gt_is_its_rounds() -> None:
    solver = games.fedgda_gt(0.2, 3)
    state = solver.step(solver.step(solver.init(ZERO), GAME.operator), GAME.operator)
    matrix, shift = np.float64(GAME.matrix), np.float64(GAME.shift)
    w = np.zeros(4)
    for _ in range(2):
        whole = matrix.mean(0) @ w + shift.mean(0)
        ends = []
        for m, b in zip(matrix, shift, strict=True):
            z = w
            for _ in range(3):
                z = z - 0.2 * ((m @ z + b) - (m @ w + b) + whole)
            ends.append(z)
        w = np.mean(ends, 0)
    np.testing.assert_allclose(state.z, np.tile(w, (8, 1)), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("make", [lambda g: games.local_gda(g), lambda g: games.extragradient(g)])
def test_a_schedule_is_read_at_finished_steps(make: Callable[[Any], Solver]) -> None:
    rates = jnp.array([0.3, 0.1])
    planned = make(lambda count: rates[count])
    state = planned.init(ZERO)
    for _ in range(2):
        state = planned.step(state, GAME.operator, True)
    first = make(0.3).step(make(0.3).init(ZERO), GAME.operator, True)
    np.testing.assert_allclose(state.z, make(0.1).step(first, GAME.operator, True).z, rtol=1e-6)


SOLVERS: dict[str, Callable[[Any], Solver]] = {
    "proxskip_vip": lambda a: games.proxskip_vip(0.3, 0.5, axis_name=a),
    "local_gda": lambda a: games.local_gda(0.3, axis_name=a),
    "extragradient": lambda a: games.extragradient(0.3, axis_name=a),
    "fedgda_gt": lambda a: games.fedgda_gt(0.3, 2, axis_name=a),
    "dual_free_admm": lambda a: games.dual_free_admm(1.0, step_size=0.4, axis_name=a),
}


def test_every_solver_whose_nodes_can_lie_along_an_axis_is_here() -> None:
    solvers = optkit.catalogue.entries(kind="solver")
    assert {e.name for e in solvers if "axis_name" in e.hyperparameters()} == set(SOLVERS)


@pytest.mark.parametrize("name", SOLVERS)
def test_nodes_along_an_axis_are_nodes_along_a_leading_axis(name: str) -> None:
    mesh, rounds = mesh_of("auto", (4,)), name in ("fedgda_gt", "dual_free_admm")

    def run(a: Any, matrix: jax.Array, shift: jax.Array, z: jax.Array) -> jax.Array:
        solver, game = SOLVERS[name](a), GAME._replace(matrix=matrix, shift=shift)

        def body(state: Any, meets: jax.Array) -> tuple[Any, None]:
            extra = () if rounds else (meets,)
            return solver.step(state, game.operator, *extra), None

        meets = jnp.array([False, True, False, False, True, False])
        return jax.lax.scan(body, solver.init(z), meets)[0].z

    args = GAME.matrix, GAME.shift, ZERO + 1.0
    inside = jax.shard_map(
        lambda *own: run("x", *own), mesh=mesh, in_specs=P("x"), out_specs=P("x")
    )
    want = jax.jit(lambda *whole: run(None, *whole))(*args)
    np.testing.assert_allclose(jax.jit(inside)(*args), want, rtol=2e-5, atol=1e-6)


def test_trees_and_16_bits() -> None:
    z = {"x": jnp.ones((2, 3), jnp.bfloat16), "y": jnp.zeros(2)}
    state = SKIP.step(SKIP.init(z), lambda z: jax.tree.map(jnp.ones_like, z), True)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.z)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(state.z["x"], 0.7, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: games.proxskip_vip(0.0, 0.5), "step_size=0.0 must be above 0"),
        (lambda: games.proxskip_vip(0.1, 0.0), "probability=0.0 must be above 0"),
        (lambda: games.proxskip_vip(0.1, 1.5), "probability=1.5"),
        (lambda: games.extragradient(0.1, -1.0), "second=-1.0"),
        (lambda: games.fedgda_gt(0.1, 0), "local_steps=0"),
        (lambda: SKIP.init({"a": jnp.zeros((2, 1)), "b": jnp.zeros(3)}), "same leading axis"),
        (lambda: SKIP.init(jnp.zeros(())), "leading axis of nodes"),
    ],
)
def test_wrong_use_is_named(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        call()
