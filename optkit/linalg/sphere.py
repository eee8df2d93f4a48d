"""Steps along spheres: vectors that turn and keep their norm."""

import jax
import jax.numpy as jnp

from optkit.linalg.norms import safe_sqrt, to_unit_peak, unit_over


def _unit(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """``x`` of a usual size divided by its norm (zeros stay zeros), and whether there is any."""
    norm = safe_sqrt(jnp.sum(x * x, axis=axes, keepdims=True))
    alive = norm != 0  # NaN counts as alive and stays visible
    return x / jnp.where(alive, norm, 1.0), alive


def turn(
    x: jax.Array,
    direction: jax.Array,
    rate: float | jax.Array,
    radius: jax.Array,
    axes: tuple[int, ...],
    eps: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Turns x away from a direction: radius * N(N(x) - rate * N(direction)), N(x) = x / ||x||.

    Neither the size of x nor that of the direction matters.

    Args:
      x: float32 or better, of about the size of the radius.
      direction: of the shape of x, of any size.
      rate: tangent of the angle if the two are perpendicular.
      radius: norm of the result, of the shape of x with size 1 in place of the axes.
      axes: the axes that make one vector; the others are a batch.
      eps: lower bound of the norm of the direction.

    Returns:
      The turned vectors, and, of the radius's shape, whether x and direction have a norm at all:
      where they have none the result is no vector to use.

    Example:
      >>> x, u = jnp.array([[3.0, 4.0]]), jnp.array([[4e30, -3e30]])
      >>> turned, moves = turn(x, u, 1.0, jnp.array([[5.0]]), (1,))
      >>> turned.round(3).tolist(), moves.tolist()
      ([[-0.70..., 4.95...]], [[True]])
    """
    y, peak = to_unit_peak(direction, axes)
    norm = safe_sqrt(jnp.sum(y * y, axis=axes, keepdims=True))
    moves = norm != 0
    norm = jnp.maximum(norm, eps / peak) if eps else norm
    # In units of the radius, so that squares neither overflow nor vanish.
    unit, alive = _unit(x / jnp.where(radius == 0, 1.0, radius), axes)
    turned, _ = _unit(unit - rate * (y / jnp.where(norm == 0, 1.0, norm)), axes)
    return radius * turned, moves & alive


def retract(
    x: jax.Array, step: jax.Array, radius: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Moves x by a step and scales the sum to its radius.

    Args:
      x: float32 or better.
      step: of the shape of x, of any size.
      radius: norm of the result, of the shape of x with size 1 in place of the axes.
      axes: the axes that make one vector; the others are a batch.

    Returns:
      The vectors of that norm (zero where the sum is zero), and whether there is a step.

    Example:
      >>> x, step = jnp.array([3.0, 0.0]), jnp.array([0.0, 3.0])
      >>> retract(x, step, jnp.array([2.0**0.5]), (0,))[0].round(3).tolist()
      [1.0, 1.0]
    """
    return radius * unit_over(x + step, axes), jnp.any(step != 0, axis=axes, keepdims=True)
