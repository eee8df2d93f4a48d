"""PolyStep with whole solutions for particles: a swarm, each in a polytope of all parameters."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.evolution.polystep.coordinates import Coordinates, added
from optkit.evolution.polystep.geometry import Polytope, haar_rotations, polytope_vertices
from optkit.evolution.polystep.moving import Move
from optkit.evolution.polystep.transport import CostScale, NonFinite, Solver, check_cost_scale
from optkit.evolution.strategy import Strategy, fitness_vector
from optkit.transforms.base import need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_choice,
    check_number,
    check_static_int,
    value_at,
)
from optkit.transforms.noise import Key, check_seed, fresh_key
from optkit.tree import PyTree


class PolyStepESState(NamedTuple):
    """State of ``polystep_es``."""

    es_key: jax.Array  # threefry PRNG key, constant
    es_step: jax.Array  # int32 scalar, finished generations
    es_offsets: jax.Array  # (particles, parameters) float32, particles less the parameters


class PolyStepES(Strategy):
    """What ``polystep_es`` returns: a strategy that also takes recorded rotations.

    Attributes:
      population: particles times corners, or None.
    """

    swarm: "Swarm"

    def perturb(self, params: PyTree, state: Any, *, rotations: jax.Array | None = None) -> PyTree:
        """Returns the population: leaves ``(population, *shape)`` in the dtypes of ``params``.

        Args:
          params: the mean of the particles.
          state: this method's state, or that of a chain that has it.
          rotations: recorded ones to be taken instead of those drawn.
        """
        return self.swarm.members(params, self.state(state), rotations)


@dataclass(frozen=True)
class Swarm:
    """The settings of ``polystep_es`` that say where its members lie."""

    population: int | None
    particles: int
    step_radius: ScalarOrSchedule
    polytope: Polytope

    def vertices(self, coordinates: Coordinates) -> jax.Array:
        """Returns the corners ``(v, d)``, their number checked against the population."""
        corners = polytope_vertices(self.polytope, coordinates.count)
        if self.population not in (None, self.particles * len(corners)):
            raise ValueError(
                f"population={self.population} does not fit {self.particles} particles with the "
                f"{len(corners)} corners of the {self.polytope} of {coordinates.count} parameters; "
                f"give population={self.particles * len(corners)}"
            )
        return jnp.asarray(corners, coordinates.dtype)

    def rotations(self, state: PolyStepESState, dim: int, given: Any) -> jax.Array:
        """Returns a generation's turns of the particles' polytopes."""
        if given is not None:
            return jnp.asarray(given, state.es_offsets.dtype)
        key = jax.random.fold_in(state.es_key, state.es_step)
        return haar_rotations(key, self.particles, dim, state.es_offsets.dtype)

    def members(self, params: PyTree, state: PolyStepESState, rotations: Any = None) -> PyTree:
        """Returns the corners of all particles' polytopes as trees."""
        coordinates = Coordinates(params, None)
        corners = self.vertices(coordinates)
        turned = jnp.einsum(
            "bij,vj->bvi", self.rotations(state, coordinates.count, rotations), corners
        )
        moved = state.es_offsets[:, None] + value_at(self.step_radius, state.es_step) * turned
        bases = [[()]] * len(coordinates.parts)
        return added(params, coordinates.spread(bases, moved.reshape(-1, coordinates.count)))


@register(
    kind="strategy",
    family="evolution",
    paper=("Training Non-Differentiable Networks via Optimal Transport", "2605.01928", 2026),
    state_bytes={"*": 4},
    tags=("evolution", "gradient-free", "optimal-transport"),
    chain="corners of polytopes around particles, - step of their mean",
    example={},
)
def polystep_es(
    population: int | None = None,
    *,
    particles: int = 1,
    epsilon: ScalarOrSchedule = 0.5,
    step_radius: ScalarOrSchedule = 0.5,
    polytope: Polytope = "orthoplex",
    solver: Solver = "softmax",
    scale_cost: CostScale = "mean",
    spread: float = 0.0,
    maximize: bool = True,
    nonfinite: NonFinite = "worst",
    key: Key = None,
) -> PolyStepES:
    """Moves a swarm of whole solutions, each to the corners of its own polytope that cost least.

    1. members are ``X_b + step_radius * R_b v_j``, ``R_b`` uniform, for particle b and corner j of
       a polytope in all d parameters;
    2. ``W <- softmax(-C/(scale*epsilon))`` over the corners of each particle, or Sinkhorn's plan;
    3. ``X_b <- X_b + step_radius * R_b (W_b V)``.

    The parameters are the mean of the particles. Each rotation is d x d: this is for up to some
    hundreds of parameters; ``polystep`` is for networks.

    Args:
      population: particles times corners; None for what that is, known with the parameters.
      particles: number P of solutions that move on their own.
      epsilon: entropic regularization, a number or a schedule.
      step_radius: of the polytopes, a number or a schedule; epsilon does not multiply it.
      polytope: "orthoplex" (2d corners), "simplex" (d + 1) or "cube" (2**d).
      solver: "softmax", or "sinkhorn" for corners of equal mass too.
      scale_cost: costs are divided by it; "mean" and "max" of their absolute values change with the
        level of the cost.
      spread: deviation of the particles around the parameters at first.
      maximize: False for losses.
      nonfinite: such costs are put above all others; "penalty" lets them count in the scale.
      key: seed or PRNG key; None for 0.

    Returns:
      A ``Strategy`` that emits minus the step of the mean: follow it by ``optax.sgd(1.0)``. State:
      ``4*P`` bytes a parameter.

    Raises:
      ValueError: a population that does not fit particles and parameters, which says what does;
        Sinkhorn's plan of one particle; numbers out of range.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from optkit.evolution.polystep import cosine_annealing, polystep_es
      >>> params = {"w": jnp.zeros(3)}
      >>> radius = cosine_annealing(0.5, 0.05, total_steps=40)
      >>> es = polystep_es(particles=2, step_radius=radius, epsilon=0.1, maximize=False)
      >>> tx = optax.chain(es, optax.sgd(1.0))
      >>> state = tx.init(params)
      >>> @jax.jit
      ... def generation(params, state):
      ...     members = es.perturb(params, state)
      ...     losses = jnp.sum(jnp.abs(members["w"] - 1.0), axis=-1)
      ...     updates, state = tx.update(losses, state, params)
      ...     return optax.apply_updates(params, updates), state
      >>> for _ in range(40):
      ...     params, state = generation(params, state)
      >>> bool(jnp.all(jnp.abs(params["w"] - 1.0) < 0.1))
      True

    Reference:
      Training Non-Differentiable Networks via Optimal Transport, 2026,
      https://arxiv.org/abs/2605.01928: PolyStepES of their code, which has one place for all
      particles at first and penalises non-finite costs before it scales ("penalty").
    """
    if population is not None:
        check_static_int("population", population)
    check_static_int("particles", particles)
    check_number("epsilon", epsilon, low=1e-30)
    check_number("step_radius", step_radius, low=0.0)
    check_number("spread", spread, low=0.0)
    check_choice("solver", solver, ("softmax", "sinkhorn"))
    check_choice("nonfinite", nonfinite, ("worst", "penalty"))
    check_cost_scale(scale_cost)
    check_seed(key)
    swarm = Swarm(population, particles, step_radius, polytope)
    move = Move(solver, scale_cost, maximize, nonfinite, None, 1.0, None, None)

    def init(params: PyTree) -> PolyStepESState:
        coordinates = Coordinates(params, None)
        swarm.vertices(coordinates)
        own = fresh_key(key)
        shape = (particles, coordinates.count)
        drawn = jax.random.normal(jax.random.fold_in(own, 2**32 - 1), shape, coordinates.dtype)
        return PolyStepESState(own, jnp.zeros((), jnp.int32), spread * drawn)

    def update(
        fitness: Any,
        state: PolyStepESState,
        params: PyTree | None = None,
        *,
        rotations: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PolyStepESState]:
        del extra_args
        params = need_params(params, "polystep_es")
        coordinates = Coordinates(params, None)
        corners = swarm.vertices(coordinates)
        given = fitness_vector(fitness, particles * len(corners))
        cost = (-given if maximize else given).astype(coordinates.dtype).reshape(particles, -1)
        turned = swarm.rotations(state, coordinates.count, rotations)
        eps, radius = (value_at(x, state.es_step) for x in (epsilon, step_radius))
        moved = move.displacements(cost, turned, corners, eps, radius)
        mean = jnp.mean(moved, axis=0, keepdims=True)
        step = coordinates.spread([[()]] * len(coordinates.parts), mean)
        updates = jax.tree.map(lambda p, d: -d[0].astype(p.dtype), params, step)
        return updates, PolyStepESState(
            state.es_key, state.es_step + 1, state.es_offsets + (moved - mean)
        )

    out = PolyStepES(
        init,
        update,
        population=population,
        members=swarm.members,
        state=PolyStepESState,
        own_step=True,
        maximize=maximize,
    )
    out.swarm = swarm
    return out
