"""Sigma of the methods that are told it: a number, or a schedule that may end at 0."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, value_at


def check_deviation(sigma: Any) -> None:
    """Raises ValueError if sigma is a number and not above 0."""
    check_number("sigma", sigma, low=0.0)
    if not callable(sigma) and not isinstance(sigma, jax.Array) and not sigma:
        raise ValueError(f"sigma={sigma!r}: no member would differ; give a number above 0")


def deviation_at(sigma: ScalarOrSchedule, step: jax.Array) -> jax.Array:
    """Returns sigma of a generation, a float32 scalar of at least 0."""
    return jnp.maximum(jnp.asarray(value_at(sigma, step), jnp.float32), 0.0)


def next_deviation(sigma: ScalarOrSchedule, present: jax.Array, step: jax.Array) -> jax.Array:
    """Returns sigma of the next generation: of a schedule, or as it is, whoever has set it."""
    return deviation_at(sigma, step) if callable(sigma) else present


def inverse(sigma: jax.Array) -> jax.Array:
    """Returns ``1/sigma``; 0 where sigma is 0, since members that are alike say nothing."""
    return jnp.where(sigma > 0, 1.0 / jnp.where(sigma > 0, sigma, 1.0), 0.0)
