"""The population of PolyStep: how many probes there are, and some of them at a time."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.polystep.coordinates import Coordinates
from optkit.evolution.polystep.geometry import Polytope, polytope_vertices
from optkit.evolution.polystep.probing import Probing
from optkit.evolution.strategy import Strategy
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import Dims, PyTree, RuleLike


class PolyStep(Strategy):
    """What ``polystep`` returns: a strategy whose population can be evaluated a few at a time.

    Attributes:
      population: number of probes; None where they are those of all particles, known with the
        parameters.
      probing: where they lie.
    """

    probing: Probing

    def probes(
        self, params: PyTree, state: Any, index: jax.Array, *, rotations: jax.Array | None = None
    ) -> PyTree:
        """Returns some members of the population.

        Args:
          params: the parameters that are probed around.
          state: this method's state, or that of a chain that has it.
          index: ``(n,)`` integers: particle by particle, corner by corner, from near to far.
          rotations: recorded ones to be taken instead of those drawn.

        Returns:
          Leaves ``(n, *shape)``.
        """
        return self.probing.members(params, self.state(state), index, rotations)

    def changes(self, params: PyTree, state: Any, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns what some members move, for losses that can be told from that alone.

        Without a rank a member differs from the parameters in one particle's numbers only.

        Args:
          params: the parameters that are probed around.
          state: this method's state, or that of a chain that has it.
          index: ``(n,)`` integers, as of ``probes``.

        Returns:
          ``(n, particle_dim)`` positions among the coordinates, which without a rank are the
          parameters leaf after leaf (positions beyond the last are to be ignored), and what is
          added there.
        """
        return self.probing.changes(params, self.state(state), index)

    def evaluate(
        self,
        function: Callable[[PyTree], jax.Array],
        params: PyTree,
        state: Any,
        *,
        chunk: int,
    ) -> jax.Array:
        """Returns the fitnesses of the population, of which only a part is in memory at a time.

        Args:
          function: parameters of one member to a scalar.
          params: the parameters that are probed around.
          state: this method's state, or that of a chain that has it.
          chunk: members that are evaluated together.

        Returns:
          ``(population,)``.
        """
        check_static_int("chunk", chunk)
        size = self.probing.size(params)
        blocks = -(-size // chunk)
        index = jnp.minimum(jnp.arange(blocks * chunk), size - 1).reshape(blocks, chunk)
        run = jax.vmap(function)
        fitness = jax.lax.map(lambda some: run(self.probes(params, state, some)), index)
        return fitness.reshape(-1)[:size]


def count_probes(
    params: PyTree,
    *,
    particle_dim: int | None = None,
    polytope: Polytope = "orthoplex",
    num_probe: int = 1,
    rank: int | None = None,
    dims: Dims = None,
    rules: Iterable[RuleLike] = (),
) -> int:
    """Returns how many probes a generation of ``polystep`` has if all particles are probed.

    Args:
      params: parameters or their shapes.
      particle_dim: as of ``polystep``.
      polytope: as of ``polystep``.
      num_probe: as of ``polystep``.
      rank: as of ``polystep``.
      dims: as of ``polystep``.
      rules: as of ``polystep``.

    Returns:
      Particles times corners times ``num_probe``.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution.polystep import count_probes
      >>> count_probes({"w": jnp.zeros((6, 5)), "b": jnp.zeros(5)})
      72
    """
    dim = particle_dim or (8 if rank else 2)
    check_static_int("num_probe", num_probe)
    coordinates = Coordinates(params, rank, dims=dims, rules=tuple(rules))
    particles = -(-coordinates.count // dim)
    return particles * len(polytope_vertices(polytope, dim)) * num_probe
