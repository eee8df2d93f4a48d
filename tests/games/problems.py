"""Quadratic games: operators ``F_i(z) = M_i z + b_i`` of min-max problems, and their solution."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Game(NamedTuple):
    """A game of many nodes.

    Attributes:
      matrix: (nodes, d, d).
      shift: (nodes, d).
      solution: (d,), where the mean operator is 0.
      step_size: one by the largest cocoercivity constant.
      mu: smallest strong monotonicity.
    """

    matrix: jax.Array
    shift: jax.Array
    solution: np.ndarray
    step_size: float
    mu: float

    def operator(self, z: jax.Array) -> jax.Array:
        """All nodes' operators at their own points (nodes, d)."""
        return jnp.sum(self.matrix * z[:, None, :], axis=-1) + self.shift

    def error(self, z: jax.Array) -> float:
        """Distance of the nodes' mean from the solution, relative to where 0 is."""
        away = np.asarray(z, np.float64).mean(0) - self.solution
        return float(np.linalg.norm(away) / np.linalg.norm(self.solution))


def quadratic_game(
    nodes: int, half: int, seed: int = 0, low: float = 0.1, high: float = 1.0
) -> Game:
    """``min_x max_y x'Ax/2 + x'By - y'Cy/2 + a'x - c'y`` on each node.

    Nodes differ in all of it; eigenvalues of A and C are from low to high.
    """
    random = np.random.default_rng(seed)

    def positive() -> np.ndarray:
        q, _ = np.linalg.qr(random.standard_normal((half, half)))
        return (q * random.uniform(low, high, half)) @ q.T

    rows = []
    for _ in range(nodes):
        b = 0.3 * random.standard_normal((half, half)) / np.sqrt(half)
        rows.append(np.block([[positive(), b], [-b.T, positive()]]))
    matrix, shift = np.array(rows), random.standard_normal((nodes, 2 * half))
    solution = np.linalg.solve(matrix.mean(0), -shift.mean(0))
    inverses = np.linalg.inv(matrix)
    cocoercive = [1.0 / np.linalg.eigvalsh((x + x.T) / 2)[0] for x in inverses]
    mu = min(np.linalg.eigvalsh((m + m.T) / 2)[0] for m in matrix)
    return Game(
        jnp.asarray(matrix), jnp.asarray(shift), solution, float(1 / max(cocoercive)), float(mu)
    )
