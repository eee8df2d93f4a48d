"""Where PolyStep probes: particles, their turned polytopes, and the members of a population."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from optkit.evolution.polystep.coordinates import Basis, Coordinates, added
from optkit.evolution.polystep.geometry import (
    Polytope,
    haar_rotations,
    polytope_vertices,
    toward,
)
from optkit.transforms.hyperparams import ScalarOrSchedule, value_at
from optkit.tree import Dims, PyTree, RuleLike


class PolyStepState(NamedTuple):
    """State of ``polystep``."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_basis: Any  # of a subspace: a float32 array or two factors for each matrix
    es_velocity: Any  # (particles, particle_dim) float32 with momentum, else ()
    es_direction: Any  # (particles, particle_dim) float32, last moves for biased rotations, else ()
    es_multiplier: jax.Array  # float32 scalar, of both radii
    es_stagnation: jax.Array  # int32 scalar, generations whose mean cost hardly moved
    es_cost: jax.Array  # float32 scalar, last mean cost, infinite at first


class Radii(NamedTuple):
    """What a generation moves and probes with."""

    epsilon: Any
    step: Any
    probe: Any


@dataclass(frozen=True)
class Probing:
    """How the members of a population lie around parameters.

    Attributes:
      population: number of probes; None for those of all particles.
      epsilon, step_radius, probe_radius, jitter: as of ``polystep``.
      particle_dim: numbers in a particle.
      polytope: whose corners are probed.
      num_probe: probes on the way to each corner.
      rank: of the subspace; None for all parameters.
      basis: how the subspace is stored.
      biased: turn the first axis of a polytope to the last move.
      dims: which axes of a leaf are its matrix.
      rules: the user's role rules.
    """

    population: int | None
    epsilon: ScalarOrSchedule
    step_radius: ScalarOrSchedule
    probe_radius: ScalarOrSchedule
    jitter: float
    particle_dim: int
    polytope: Polytope
    num_probe: int
    rank: int | None
    basis: Basis
    biased: bool
    dims: Dims
    rules: tuple[RuleLike, ...]

    @property
    def vertices(self) -> np.ndarray:
        """Corners of the polytope, ``(v, particle_dim)``."""
        return polytope_vertices(self.polytope, self.particle_dim)

    @property
    def probes(self) -> int:
        """Probes of one particle."""
        return len(self.vertices) * self.num_probe

    def coordinates(self, params: PyTree) -> Coordinates:
        """Returns what particles are cut from."""
        return Coordinates(params, self.rank, basis=self.basis, dims=self.dims, rules=self.rules)

    def particles(self, coordinates: Coordinates) -> tuple[int, int]:
        """Returns how many particles there are, and how many of them a generation probes."""
        count = -(-coordinates.count // self.particle_dim)
        if self.population is None:
            return count, count
        if self.population > count * self.probes:
            raise ValueError(
                f"population={self.population} is more than the {count * self.probes} probes that "
                f"there are: {count} particles of {self.particle_dim} numbers with {self.probes} "
                f"probes each; give population={count * self.probes}, or fewer to take turns"
            )
        return count, self.population // self.probes

    def size(self, params: PyTree) -> int:
        """Returns the number of members."""
        return self.particles(self.coordinates(params))[1] * self.probes

    def rows(self, step: jax.Array, count: int, block: int) -> jax.Array:
        """Returns the particles that a generation probes."""
        rows = jnp.arange(block)
        return rows if block == count else (rows + step * block) % count

    def radii(self, state: PolyStepState, key: jax.Array) -> Radii:
        """Returns this generation's: a number is multiplied by epsilon, a schedule is not."""
        eps = value_at(self.epsilon, state.es_step)

        def radius(given: ScalarOrSchedule) -> Any:
            own = value_at(given, state.es_step)
            return (own if callable(given) else own * eps) * state.es_multiplier

        probe = radius(self.probe_radius)
        if self.jitter:
            probe = probe * (1.0 + self.jitter * jax.random.uniform(key, (), minval=-1.0))
        return Radii(eps, radius(self.step_radius), probe)

    def rotations(
        self, key: jax.Array, state: PolyStepState, rows: jax.Array, dtype: Any
    ) -> jax.Array:
        """Returns the turns of the polytopes of some particles."""
        drawn = haar_rotations(key, rows.shape[0], self.particle_dim, dtype)
        return toward(drawn, state.es_direction[rows]) if self.biased else drawn

    def changes(
        self, params: PyTree, state: PolyStepState, index: jax.Array, rotations: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns which coordinates some members move, and by how much: ``(n, particle_dim)``."""
        coordinates = self.coordinates(params)
        rows = self.rows(state.es_step, *self.particles(coordinates))
        turn, shake = generation_keys(state)
        if rotations is None:
            rotations = self.rotations(turn, state, rows, coordinates.dtype)
        probe = self.radii(state, shake).probe
        particle, rest = index // self.probes, index % self.probes
        corner, along = rest // self.num_probe, rest % self.num_probe
        out = jnp.asarray(self.vertices, coordinates.dtype)[corner]
        ahead = jnp.einsum("nij,nj->ni", rotations[particle], out)
        share = (along + 1).astype(coordinates.dtype) / (self.num_probe + 1)
        at = rows[particle][:, None] * self.particle_dim + jnp.arange(self.particle_dim)[None]
        return at, ahead * (probe * share)[:, None]

    def members(
        self, params: PyTree, state: PolyStepState, index: jax.Array, rotations: Any = None
    ) -> PyTree:
        """Returns some members of the population: ``(len(index), *shape)``."""
        coordinates = self.coordinates(params)
        at, ahead = self.changes(params, state, index, rotations)
        moved = jnp.zeros((index.shape[0], coordinates.count), coordinates.dtype)
        # The last particle may reach beyond the last coordinate: those numbers move nothing.
        moved = moved.at[jnp.arange(index.shape[0])[:, None], at].set(ahead, mode="drop")
        return added(params, coordinates.spread(state.es_basis, moved))


def generation_keys(state: PolyStepState) -> tuple[jax.Array, jax.Array]:
    """Returns the keys of a generation's rotations and of its jitter."""
    turn, shake = jax.random.split(jax.random.fold_in(state.es_key, state.es_step))
    return turn, shake


def basis_key(key: jax.Array, epoch: jax.Array | int) -> jax.Array:
    """Returns the key of a subspace's basis, apart from those of all generations."""
    return jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), epoch)
