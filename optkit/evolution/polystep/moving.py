"""How PolyStep's particles move once the costs of their corners are known."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.polystep.coordinates import Coordinates
from optkit.evolution.polystep.probing import PolyStepState, basis_key
from optkit.evolution.polystep.transport import (
    CostScale,
    NonFinite,
    Solver,
    comparable,
    plan_weights,
)
from optkit.transforms.hyperparams import ScalarOrSchedule, value_at


@dataclass(frozen=True)
class AdaptiveRadius:
    """Widens both radii where the mean cost stands still, and narrows them where it falls.

    Attributes:
      threshold: relative change of the mean cost below which a generation stood still.
      patience: so many of them in a row widen the radii.
      increase: what they are then multiplied by.
      decrease: what a generation of lower cost multiplies them by.
      low, high: bounds of the multiplier.

    Example:
      >>> from optkit.evolution.polystep import AdaptiveRadius
      >>> AdaptiveRadius(patience=5).increase
      1.5
    """

    threshold: float = 1e-4
    patience: int = 10
    increase: float = 1.5
    decrease: float = 0.9
    low: float = 0.5
    high: float = 3.0

    def advance(self, state: PolyStepState, cost: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns multiplier and number of still generations after one of this mean cost."""
        last, multiplier = state.es_cost, state.es_multiplier
        known = jnp.isfinite(cost) & jnp.isfinite(last)
        change = jnp.abs(cost - last) / (jnp.abs(last) + 1e-10)
        still = jnp.where(change < self.threshold, state.es_stagnation + 1, 0)
        stuck = still >= self.patience
        wider = jnp.minimum(multiplier * self.increase, self.high)
        narrower = jnp.where(
            cost < last, jnp.maximum(multiplier * self.decrease, self.low), multiplier
        )
        moved = jnp.where(stuck, wider, narrower)
        return (
            jnp.where(known, moved, multiplier),
            jnp.where(known, jnp.where(stuck, 0, still), state.es_stagnation),
        )


@dataclass(frozen=True)
class Move:
    """How costs move particles; attributes as of ``polystep``."""

    solver: Solver
    scale_cost: CostScale
    maximize: bool
    nonfinite: NonFinite
    momentum: ScalarOrSchedule | None
    velocity_lr: ScalarOrSchedule
    adaptive: AdaptiveRadius | None
    absorb_interval: int | None

    def displacements(
        self, cost: jax.Array, rotations: jax.Array, vertices: Any, epsilon: Any, radius: Any
    ) -> jax.Array:
        """Returns how far the barycentres of the corners lie, ``(particles, particle_dim)``."""
        if self.solver == "sinkhorn" and cost.shape[0] == 1:
            raise ValueError(
                "solver='sinkhorn' gives all corners the same mass: one particle alone never "
                "moves; give solver='softmax', or a smaller particle_dim"
            )
        weights = plan_weights(
            comparable(cost, self.scale_cost, self.nonfinite), epsilon, self.solver
        )
        centre = weights @ jnp.asarray(vertices, weights.dtype)
        return radius * jnp.einsum("bij,bj->bi", rotations, centre)


def advanced(
    move: Move, state: PolyStepState, rows: jax.Array, moved: jax.Array, cost: jax.Array
) -> tuple[PolyStepState, jax.Array]:
    """Returns the state after a move, and the move with its momentum."""
    if not isinstance(state.es_direction, tuple):
        state = state._replace(es_direction=state.es_direction.at[rows].set(moved))
    if move.momentum is not None:
        beta = value_at(move.momentum, state.es_step)
        velocity = beta * state.es_velocity[rows] + moved
        state = state._replace(es_velocity=state.es_velocity.at[rows].set(velocity))
        moved = value_at(move.velocity_lr, state.es_step) * velocity
    if move.adaptive is not None:
        multiplier, still = move.adaptive.advance(state, cost)
        state = state._replace(
            es_multiplier=multiplier, es_stagnation=still, es_cost=cost.astype(jnp.float32)
        )
    return state, moved


def absorbed(move: Move, coordinates: Coordinates, state: PolyStepState) -> PolyStepState:
    """Returns the state with a new subspace if the old one has had its generations."""
    if move.absorb_interval is None:
        return state
    epoch, rest = state.es_step // move.absorb_interval, state.es_step % move.absorb_interval

    def renew(old: PolyStepState) -> PolyStepState:
        velocity, direction = jax.tree.map(jnp.zeros_like, (old.es_velocity, old.es_direction))
        basis = coordinates.draw(basis_key(old.es_key, epoch))
        return old._replace(es_basis=basis, es_velocity=velocity, es_direction=direction)

    return jax.lax.cond(rest == 0, renew, lambda old: old, state)
