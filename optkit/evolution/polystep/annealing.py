"""Schedules of PolyStep's regularization and radii."""

import math

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import Schedule, check_number, check_static_int


def linear_annealing(init: float, target: float, *, decay: float) -> Schedule:
    """Returns ``max(init - decay*t, target)``, a straight way down to a floor.

    Args:
      init: value of the first step.
      target: the floor.
      decay: taken off at each step.

    Returns:
      A schedule: number of finished steps to a float32 scalar.

    Raises:
      ValueError: a number that is not finite, or a negative decay.

    Example:
      >>> from optkit.evolution.polystep import linear_annealing
      >>> [float(linear_annealing(1.0, 0.5, decay=0.25)(t)) for t in range(4)]
      [1.0, 0.75, 0.5, 0.5]

    Reference:
      Training Non-Differentiable Networks via Optimal Transport, 2026,
      https://arxiv.org/abs/2605.01928: LinearEpsilon of their code.
    """
    check_number("init", init)
    check_number("target", target)
    check_number("decay", decay, low=0.0)

    def schedule(count: jax.Array) -> jax.Array:
        return jnp.maximum(init - decay * jnp.asarray(count, jnp.float32), target)

    return schedule


def cosine_annealing(
    init: float, target: float, *, total_steps: int | None = None, decay: float = 0.01
) -> Schedule:
    """Returns half a cosine from one value down to another, high for longer than a straight line.

    ``target + (init - target)*(1 + cos(pi*min(t, T)/T))/2``.

    Args:
      init: value of the first step.
      target: value of step T and of all after it.
      total_steps: T; None for the ``int((init - target)/decay)`` of the straight line, at least 1.
      decay: used without ``total_steps`` only.

    Returns:
      A schedule: number of finished steps to a float32 scalar.

    Raises:
      ValueError: a number that is not finite, or no positive ``decay``.

    Example:
      >>> from optkit.evolution.polystep import cosine_annealing
      >>> [round(float(cosine_annealing(2.0, 1.0, total_steps=2)(t)), 4) for t in range(4)]
      [2.0, 1.5, 1.0, 1.0]

    Reference:
      Training Non-Differentiable Networks via Optimal Transport, 2026,
      https://arxiv.org/abs/2605.01928: CosineEpsilon of their code.
    """
    check_number("init", init)
    check_number("target", target)
    if total_steps is None:
        check_number("decay", decay, low=1e-12)
        total_steps = max(1, int((init - target) / decay))
    check_static_int("total_steps", total_steps)
    period = total_steps

    def schedule(count: jax.Array) -> jax.Array:
        done = jnp.minimum(jnp.asarray(count, jnp.float32), period) / period
        return target + 0.5 * (init - target) * (1.0 + jnp.cos(math.pi * done))

    return schedule
