"""Operators of other shapes, decisions that are none, and events of other nodes are refused."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import optkit

games = optkit.games
Z = {"x": jnp.ones((2, 3)), "y": jnp.ones((2, 1))}
SOLVERS = {
    "proxskip_vip": games.proxskip_vip(0.5, 0.5),
    "local_gda": games.local_gda(0.5),
    "extragradient": games.extragradient(0.5),
    "fedgda_gt": games.fedgda_gt(0.5, 2),
    "dual_free_admm": games.dual_free_admm(1.0, step_size=0.1),
}
MEETING = ("proxskip_vip", "local_gda", "extragradient")
RAISED = {"x": jnp.ones((2, 1)), "y": jnp.ones((2, 1))}  # would broadcast


@pytest.mark.parametrize("name", SOLVERS)
def test_operators_return_what_they_are_given(name: str) -> None:
    solver = SOLVERS[name]
    extra = (True,) if name in MEETING else ()
    for step in (solver.step, jax.jit(solver.step, static_argnums=1)):
        with pytest.raises(ValueError, match=r"operator .* \(2, 1\) of one \(2, 3\) at leaf 'x'"):
            step(solver.init(Z), lambda z: RAISED, *extra)
        with pytest.raises(ValueError, match=r"operator returned a tree .*'x': \*}\) of one .*'y'"):
            step(solver.init(Z), lambda z: {"x": z["x"]}, *extra)


def test_so_do_other_functions() -> None:
    solver = games.proxskip_vip(0.5, 0.5, prox=lambda z, far: 0.0)
    with pytest.raises(ValueError, match=r"prox returned a tree"):
        solver.step(solver.init(Z), lambda z: z, True)
    solver = games.dual_free_admm(1.0, solve=lambda linear, a: RAISED)
    with pytest.raises(ValueError, match=r"solve returned shape \(2, 1\) of one \(2, 3\)"):
        solver.step(solver.init(Z), lambda z: z)
    reduced = games.loopless()
    with pytest.raises(ValueError, match=r"operator of all data returned shape"):
        reduced.init(Z, lambda z: RAISED)
    state = reduced.init(Z, lambda z: z)
    with pytest.raises(ValueError, match=r"operator of a sample returned shape"):
        reduced.operator(state, lambda z: RAISED)(Z)


@pytest.mark.parametrize("name", MEETING)
def test_meetings_are_decided(name: str) -> None:
    solver = SOLVERS[name]
    state = solver.init(Z)
    for meets in (0.5, jnp.array([True]), jnp.float32(1.0)):
        for step in (solver.step, jax.jit(solver.step, static_argnums=1)):
            with pytest.raises(ValueError, match="meets must be a boolean scalar, not"):
                step(state, lambda z: z, meets)
    with pytest.raises(ValueError, match="meets=2 must be True or False"):
        solver.step(state, lambda z: z, 2)
    want = solver.step(state, lambda z: z, True)
    got = solver.step(state, lambda z: z, 1)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), got, want)))


def test_anchors_move_by_a_decision() -> None:
    reduced = games.loopless()
    with pytest.raises(ValueError, match="moves must be a boolean scalar"):
        reduced.move(reduced.init(Z, lambda z: z), Z, lambda z: z, 0.1)


@pytest.mark.parametrize("again", [(0, 1), (1, 0)])
def test_an_edge_is_given_once(again: Any) -> None:
    with pytest.raises(ValueError, match=r"edge \(0, 1\) is given more than once"):
        games.graph(3, [(0, 1), (1, 2), again])


def test_events_are_of_the_states_nodes_and_come_one_by_one() -> None:
    ring = games.graph(4, [(0, 1), (1, 2), (2, 3), (3, 0)])
    solver = games.dadao(1.0, 1.0, ring.chi)
    events = games.sample_events(jax.random.key(0), ring, 2)
    state = solver.init(jnp.zeros((3, 1)))
    with pytest.raises(ValueError, match="event has 2 events: a step takes one"):
        solver.step(state, lambda i, x: x, events)
    event = games.Events(*(jnp.asarray(x) for x in (0.1, True, 3, 0)))
    with pytest.raises(ValueError, match="event is of node 3, and the state has nodes 0 to 2"):
        solver.step(state, lambda i, x: x, event)
    sent = event._replace(gradient=jnp.asarray(False), first=jnp.int32(0), second=jnp.int32(3))
    with pytest.raises(ValueError, match="event is of node 3"):
        solver.step(state, lambda i, x: x, sent)
    solver.step(state, lambda i, x: x, sent._replace(gradient=jnp.asarray(True)))  # not read
    with pytest.raises(ValueError, match=r"gradient returned shape \(1, 1\) of one \(1,\)"):
        solver.step(state, lambda i, x: x[None], event._replace(first=jnp.int32(2)))
