"""Graphs of nodes, and events at random times over them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.transforms.hyperparams import check_static_int


class Graph(NamedTuple):
    """A connected graph and what DADAO has to know of it.

    Attributes:
      nodes: how many.
      edges: int32 (edges, 2).
      rate: messages in a unit of time on all edges, ``sqrt(2*chi_1*chi_2)``.
      chi: ``chi_1/rate``, chi_1 of the Laplacian with equal probabilities of the edges.
    """

    nodes: int
    edges: np.ndarray
    rate: float
    chi: float


class Events(NamedTuple):
    """What happens when, (events,) each; a scan runs over them.

    Attributes:
      wait: time since the event before. No sums of it, which float32 would round.
      gradient: bool, whether ``first`` takes a gradient; otherwise two nodes exchange.
      first: int32.
      second: int32, not read of a gradient.
    """

    wait: jax.Array
    gradient: jax.Array
    first: jax.Array
    second: jax.Array


def graph(nodes: int, edges: Sequence[tuple[int, int]]) -> Graph:
    """Measures a graph whose edges are used equally often.

    With the Laplacian ``A = (1/|E|) sum_(i,j) (e_i - e_j)(e_i - e_j)^T``: ``chi_1`` is one by its
    smallest positive eigenvalue, ``chi_2`` half of the largest effective resistance of an edge.

    Args:
      nodes: how many.
      edges: pairs of nodes, each once; all nodes have to be connected.

    Returns:
      ``Graph``.

    Raises:
      ValueError: an edge of a node that is none, to itself or given twice, or nodes that are not
        connected.

    Example:
      >>> import optkit
      >>> ring = optkit.games.graph(4, [(0, 1), (1, 2), (2, 3), (3, 0)])
      >>> round(ring.rate, 3), round(ring.chi, 3)
      (2.449, 0.816)

    Reference:
      Nabli and Oyallon, arXiv 2208.00779.
    """
    check_static_int("nodes", nodes, low=2)
    pairs = np.asarray(edges, np.int32).reshape(-1, 2)
    for first, second in pairs.tolist():
        if first == second or not (0 <= first < nodes and 0 <= second < nodes):
            raise ValueError(
                f"edge {(first, second)} has to be of two different nodes from 0 to {nodes - 1}"
            )
    once, counts = np.unique(np.sort(pairs, axis=1), axis=0, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"edge {tuple(once[counts > 1][0].tolist())} is given more than once, in one direction "
            "or the other: give each pair of nodes once"
        )
    ends = np.eye(nodes)[pairs[:, 0]] - np.eye(nodes)[pairs[:, 1]]
    laplacian = ends.T @ ends / max(len(pairs), 1)
    values = np.linalg.eigvalsh(laplacian)
    if values[1] <= 1e-9 * max(values[-1], 1e-30):
        raise ValueError(f"edges={edges!r} do not connect {nodes} nodes: add edges")
    chi_1 = 1.0 / values[1]
    chi_2 = 0.5 * float(np.max(np.sum((ends @ np.linalg.pinv(laplacian)) * ends, axis=1)))
    rate = math.sqrt(2.0 * chi_1 * chi_2)
    return Graph(nodes, pairs, rate, float(chi_1 / rate))


def sample_events(key: jax.Array, graph: Graph, count: int) -> Events:
    """Draws what happens when: a gradient of each node in a unit of time, and the graph's messages.

    All clocks are independent Poisson processes; an edge is any of the graph's with equal
    probability.

    Args:
      key: PRNG key.
      graph: of ``optkit.games.graph``.
      count: how many events.

    Returns:
      ``Events``.

    Example:
      >>> import jax, optkit
      >>> ring = optkit.games.graph(3, [(0, 1), (1, 2), (2, 0)])
      >>> events = optkit.games.sample_events(jax.random.key(0), ring, 5)
      >>> events.first.shape, bool((events.wait > 0).all())
      ((5,), True)
    """
    check_static_int("count", count)
    clock, kind, edge, node = jax.random.split(key, 4)
    total = graph.nodes + graph.rate
    wait = jax.random.exponential(clock, (count,)) / total
    gradient = jax.random.bernoulli(kind, graph.nodes / total, (count,))
    pairs = jnp.asarray(graph.edges)[jax.random.randint(edge, (count,), 0, len(graph.edges))]
    alone = jax.random.randint(node, (count,), 0, graph.nodes, jnp.int32)
    return Events(wait, gradient, jnp.where(gradient, alone, pairs[:, 0]), pairs[:, 1])
