"""DADAO: gradients and messages at random times, over any graph."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import expm

from optkit.catalogue import register
from optkit.games.base import Solver, alike, starting
from optkit.games.graphs import Events
from optkit.transforms.hyperparams import check_number, check_static_number
from optkit.tree import PyTree


class DadaoState(NamedTuple):
    """State of ``dadao``; every node's six vectors are those of its own last event.

    Attributes:
      x: (nodes, ...), the solution, float32 or better.
      x_tilde: like x, ahead of it.
      y, y_tilde: like x, of the gradients.
      z, z_tilde: like x, of the messages; they sum to 0 over nodes at one time.
      age: (nodes,), time since a node's last event.
    """

    x: PyTree
    x_tilde: PyTree
    y: PyTree
    y_tilde: PyTree
    z: PyTree
    z_tilde: PyTree
    age: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class GossipSolver(Solver):
    """What ``optkit.games.dadao`` returns.

    Attributes:
      together: state -> state with all nodes at the time of the last event.
    """

    together: Callable[[DadaoState], DadaoState]


class _Constants(NamedTuple):
    """The paper's, of the strong convexity, the smoothness and the graph."""

    nu: float
    gamma: float
    gamma_tilde: float
    delta: float
    beta: float
    beta_tilde: float
    flow: np.ndarray  # (6, 6)


def _constants(mu: float, smoothness: float, chi: float) -> _Constants:
    nu = mu / 2.0
    s = math.sqrt(nu / smoothness)
    eta = alpha_tilde = s / 8.0
    alpha, theta = s / 4.0, 1.0 / (2.0 * s)
    flow = np.array(
        [
            [-eta, eta, 0.0, 0.0, 0.0, 0.0],
            [eta, -eta, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, -alpha, alpha, 0.0, 0.0],
            [0.0, -theta * nu, -theta, 0.0, -theta, 0.0],
            [0.0, 0.0, 0.0, 0.0, -alpha, alpha],
            [0.0, 0.0, 0.0, 0.0, alpha_tilde, -alpha_tilde],
        ]
    )
    ahead = 1.0 / (4.0 * math.sqrt(smoothness * nu))
    return _Constants(nu, 0.25 / smoothness, ahead, s / 4.0 + 1.0, 0.5, 2.0 * chi / s, flow)


def _at(tree: PyTree, node: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x[node], tree)


def _put(tree: PyTree, node: jax.Array, rows: PyTree) -> PyTree:
    return jax.tree.map(lambda x, row: x.at[node].set(row), tree, rows)


def _flowed(flow: np.ndarray, time: jax.Array, rows: list[PyTree]) -> list[PyTree]:
    """The six vectors of a node after some time on its own."""
    mixing = expm(jnp.asarray(flow, time.dtype) * time)

    def leaf(*six: jax.Array) -> list[jax.Array]:
        # By multiplication and addition: as a matrix product TPUs would round it.
        return [sum(mixing[i, j].astype(x.dtype) * x for j, x in enumerate(six)) for i in range(6)]

    leaves, structure = zip(*(jax.tree.flatten(row) for row in rows), strict=True)
    done = [leaf(*six) for six in zip(*leaves, strict=True)]
    return [jax.tree.unflatten(structure[0], column) for column in zip(*done, strict=True)]


def _advanced(state: DadaoState, flow: np.ndarray, node: jax.Array) -> DadaoState:
    """A node brought up to date."""
    rows = _flowed(flow, state.age[node], [_at(tree, node) for tree in state[:6]])
    trees = [_put(tree, node, row) for tree, row in zip(state[:6], rows, strict=True)]
    return DadaoState._make([*trees, state.age.at[node].set(0.0)])


@register(
    kind="solver",
    family="games",
    paper=(
        "DADAO: Decoupled Accelerated Decentralized Asynchronous Optimization",
        "2208.00779",
        2022,
    ),
    state_bytes={"*": 24},
    tags=("decentralized", "asynchronous", "gossip", "acceleration"),
    chain="six vectors a node that flow; gradients and messages at events",
)
def dadao(mu: float, smoothness: float, chi: float) -> GossipSolver:
    """DADAO: accelerated and asynchronous, for ``min sum_i f_i(x)`` over nodes of a graph.

    Between events the six vectors of a node follow ``d/dt v = A v``, brought up to date when the
    node has an event. With ``nu = mu/2``, ``s = sqrt(nu/L)``, ``L`` the smoothness:

    1. A gradient of node i: ``r = grad f_i(x_i) - nu*x_i - y~_i``; ``x_i -= r/(4L)``;
       ``x~_i -= r/(4*sqrt(L*nu))``; ``y~_i += (s/4 + 1)*r``.
    2. A message between i and j: ``q = (y_i + z_i) - (y_j + z_j)``; ``z_i -= q/2``;
       ``z~_i -= (2*chi/s)*q``; node j the same with ``-q``.

    ``step`` is called as ``step(state, gradient, event)`` with one of
    ``optkit.games.sample_events`` and ``gradient(node, x_i) -> grad f_i(x_i)``; scan over it.
    ``solver.together(state)`` brings all nodes to one time.

    Args:
      mu: strong convexity of every f_i.
      smoothness: Lipschitz constant of every gradient, at least ``mu``.
      chi: ``Graph.chi``.

    Returns:
      An ``optkit.games.GossipSolver`` of ``DadaoState``. State bytes: 24 a float32 parameter and
      node.

    Raises:
      ValueError: a number not above 0, or ``smoothness`` below ``mu``; in step more than one event,
        a gradient of another tree or other shapes, and, where step is not traced (a scan cannot
        tell), an event of a node that the state does not have.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> target = jnp.array([[1.0], [2.0], [6.0]])
      >>> ring = optkit.games.graph(3, [(0, 1), (1, 2), (2, 0)])
      >>> solver = optkit.games.dadao(1.0, 1.0, ring.chi)
      >>> events = optkit.games.sample_events(jax.random.key(0), ring, 500)
      >>> step = lambda s, e: (solver.step(s, lambda i, x: x - target[i], e), None)
      >>> state, _ = jax.lax.scan(step, solver.init(jnp.zeros((3, 1))), events)
      >>> [round(float(x), 2) for x in state.x[:, 0]]
      [3.0, 3.0, 3.0]

    Reference:
      Nabli and Oyallon, arXiv 2208.00779. The code's A is rounded to float32, this one is not.
    """
    for name, value in (("mu", mu), ("smoothness", smoothness), ("chi", chi)):
        check_static_number(name, value)
        check_number(name, value, low=0.0, open_low=True)
    check_number("smoothness", smoothness, low=mu)
    c = _constants(mu, smoothness, chi)

    def init(x: PyTree) -> DadaoState:
        start = starting(x)
        first = jax.tree.leaves(start)[0]
        zeros = [jax.tree.map(jnp.zeros_like, start) for _ in range(5)]
        return DadaoState._make([start, *zeros, jnp.zeros(first.shape[0], first.dtype)])

    def step(state: DadaoState, gradient: Any, event: Events) -> DadaoState:
        _check_event(event, state.age.shape[0])
        state = state._replace(age=state.age + event.wait.astype(state.age.dtype))
        state = _advanced(state, c.flow, event.first)
        return lax.cond(
            event.gradient,
            lambda: _descended(state, c, gradient, event.first),
            lambda: _exchanged(_advanced(state, c.flow, event.second), c, event),
        )

    def together(state: DadaoState) -> DadaoState:
        def body(node: int, state: DadaoState) -> DadaoState:
            return _advanced(state, c.flow, jnp.asarray(node))

        return lax.fori_loop(0, state.age.shape[0], body, state)

    return GossipSolver(init, step, together)


def _check_event(event: Events, nodes: int) -> None:
    if jnp.shape(event.wait):
        raise ValueError(
            f"event has {jnp.shape(event.wait)[0]} events: a step takes one; scan over them"
        )
    if any(isinstance(part, jax.core.Tracer) for part in event):
        return
    for end in (event.first,) if event.gradient else (event.first, event.second):
        if not 0 <= int(end) < nodes:
            raise ValueError(
                f"event is of node {int(end)}, and the state has nodes 0 to {nodes - 1}: draw "
                "events of a graph of as many nodes"
            )


def _descended(state: DadaoState, c: _Constants, gradient: Any, i: jax.Array) -> DadaoState:
    x = _at(state.x, i)
    parts = alike(gradient, "gradient", 1)(i, x), x, _at(state.y_tilde, i)
    r = jax.tree.map(lambda g, x, y: g - c.nu * x - y, *parts)

    def add(tree: PyTree, scale: float) -> PyTree:
        return jax.tree.map(lambda v, d: v.at[i].add(scale * d), tree, r)

    return state._replace(
        x=add(state.x, -c.gamma),
        x_tilde=add(state.x_tilde, -c.gamma_tilde),
        y_tilde=add(state.y_tilde, c.delta),
    )


def _exchanged(state: DadaoState, c: _Constants, event: Events) -> DadaoState:
    i, j = event.first, event.second
    own = jax.tree.map(jnp.add, state.y, state.z)
    q = jax.tree.map(jnp.subtract, _at(own, i), _at(own, j))

    def add(tree: PyTree, scale: float) -> PyTree:
        return jax.tree.map(lambda v, d: v.at[i].add(-scale * d).at[j].add(scale * d), tree, q)

    return state._replace(z=add(state.z, c.beta), z_tilde=add(state.z_tilde, c.beta_tilde))
