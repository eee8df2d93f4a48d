"""How the share of int8 weights that move at a step falls over a run."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def egg_alpha(
    decay: float = 4.0, *, timescale: float = 1000.0
) -> Callable[[int | jax.Array], jax.Array]:
    """Returns the share of weights that integer EGGROLL moves, ``1/((2**decay - 1)*t/T + 1)``.

    All of them at first and ``2**-decay`` of them after T updates: steps of int8 weights are of
    size 1, so that a learning rate is a share of weights.

    Args:
      decay: above 1; at most 1 it is the constant share itself, as in the reference's code.
      timescale: T, in updates.

    Returns:
      A schedule of the number of finished updates.

    Raises:
      ValueError: a number that is not above 0.

    Example:
      >>> import optkit
      >>> float(optkit.schedules.egg_alpha()(1000))
      0.0625

    Reference:
      Sarkar et al., Evolution Strategies at the Hyperscale, arXiv 2511.16652, and nano-egg's code.
    """
    if not (decay > 0 and timescale > 0):
        raise ValueError(f"decay={decay!r} and timescale={timescale!r} must be above 0")
    slope = (2.0**decay - 1.0) / timescale if decay > 1 else 0.0
    first = 1.0 if decay > 1 else 1.0 / decay

    def schedule(count: int | jax.Array) -> jax.Array:
        return 1.0 / (slope * jnp.asarray(count, jnp.float32) + first)

    return schedule
