"""Numbers that differ between replicas, and what the replicas' losses say about them."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    check_static_number,
    value_at,
)

Permute = Callable[[jax.Array, int], jax.Array]


@dataclasses.dataclass(frozen=True)
class AutoRate:
    """How ``optkit.hdet`` lets the replicas' losses move what they explore.

    Attributes:
      total_steps: of the training, the paper's S.
      shrink: by how much the learning rate is to fall in all from ``start_step`` to the last step
        if no replica is better than another, the paper's f; 1 keeps it. A scalar besides the
        learning rate falls by its own ``Spread.shrink``.
      start_step: until here learning rates are scheduled, the paper's S_warm.
      momentum: of the velocity, the paper's beta.
      gain: of the velocity, the paper's lambda.
      loss_scale: of differences between losses, the paper's sigma. It has to be of their order: far
        above it nothing is learned, far below it the best replica takes all.

    Raises:
      ValueError: a number out of range, or no step after ``start_step``.

    Example:
      >>> import optkit
      >>> optkit.AutoRate(total_steps=1000, shrink=10.0).decay(every=100)  # 1 - 10**-0.1
      0.2056717652757185
    """

    total_steps: int
    shrink: float
    start_step: int = 0
    momentum: float = 0.9
    gain: float = 0.5
    loss_scale: float = 0.1

    def __post_init__(self) -> None:
        """Raises unless the numbers are in range."""
        check_static_int("total_steps", self.total_steps)
        check_static_int("start_step", self.start_step, low=0)
        check_number("momentum", self.momentum, low=0.0, high=1.0, open_high=True)
        check_number("gain", self.gain, low=0.0)
        check_positive("shrink", self.shrink)
        check_positive("loss_scale", self.loss_scale)
        if self.start_step >= self.total_steps:
            raise ValueError(
                f"start_step={self.start_step} leaves none of total_steps={self.total_steps}; "
                "start earlier"
            )

    def decay(self, every: int, shrink: float | None = None) -> float:
        """Returns the share that is taken off at each meeting of the replicas, gamma.

        Args:
          every: steps between meetings.
          shrink: by how much in all, ``self.shrink`` unless given.

        Returns:
          ``1 - shrink**(-every/(total_steps - start_step))``.
        """
        meetings = (self.total_steps - self.start_step) / every
        return -math.expm1(-math.log(self.shrink if shrink is None else shrink) / meetings)

    def first(self, every: int) -> int:
        """Returns the step of the first meeting that moves values."""
        return every * max(1, -(-self.start_step // every))


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number that replicas explore, where it differs from what ``optkit.hdet`` does by default.

    Attributes:
      value: a number or a schedule.
      alpha: half the width of the spread, relative to the value; None for that of ``hdet``.
      shrink: see ``optkit.AutoRate.shrink``.

    Raises:
      ValueError: a number out of range.

    Example:
      >>> import optkit
      >>> optkit.Spread(0.1, alpha=0.5)
      Spread(value=0.1, alpha=0.5, shrink=1.0)
    """

    value: ScalarOrSchedule
    alpha: ScalarOrSchedule | None = None
    shrink: float = 1.0

    def __post_init__(self) -> None:
        """Raises unless the numbers are in range."""
        check_number("value", self.value)
        if self.alpha is not None:
            check_number("alpha", self.alpha, low=0.0, high=1.0)
        check_positive("shrink", self.shrink)


class Explored(NamedTuple):
    """A number as it is in the next update; all but ``own`` and ``order`` equal on all replicas."""

    base: jax.Array  # float32 scalar, mean over replicas
    velocity: jax.Array  # float32 scalar, running mean of what their losses asked for
    order: jax.Array  # int32 scalar, this replica's place in the spread
    own: jax.Array  # float32 scalar, this replica's value


def check_positive(name: str, value: Any) -> None:
    """Raises unless a Python number is positive and finite."""
    check_static_number(name, value)
    check_number(name, value, low=0.0, open_low=True)


def spread(alpha: Any, order: jax.Array, replicas: int) -> jax.Array:
    """Returns ``rho``: from 1 - alpha to 1 + alpha, evenly, with mean 1."""
    half = (replicas - 1) / 2
    return 1.0 + alpha * (order.astype(jnp.float32) - half) / max(half, 0.5)


def scheduled(
    given: Spread, alpha: ScalarOrSchedule, old: Explored, count: jax.Array, replicas: int
) -> Explored:
    """Returns a number by its schedule, before losses move it."""
    base = jnp.asarray(value_at(given.value, count), jnp.float32)
    rho = spread(value_at(alpha, count), old.order, replicas)
    return Explored(base, old.velocity, old.order, base * rho)


def preferred(losses: jax.Array, values: jax.Array, loss_scale: float) -> jax.Array:
    """Returns delta: how far the mean of the values moves if better replicas count for more.

    A loss that is not finite counts for nothing.

    Args:
      losses: (replicas,) float32.
      values: (replicas,) float32.
      loss_scale: sigma.
    """
    finite = jnp.isfinite(losses)
    centre = jnp.sum(jnp.where(finite, losses, 0.0)) / jnp.maximum(jnp.sum(finite), 1)
    scores = jnp.where(finite, (centre - losses) / loss_scale, -jnp.inf)
    scores = jnp.where(jnp.any(finite), scores, 0.0)
    return jnp.sum(jax.nn.softmax(scores) * (values - jnp.mean(values)))


def steered(
    values: jax.Array, losses: jax.Array, velocity: jax.Array, auto: AutoRate, decay: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the next base and velocity.

    Args:
      values: (replicas,) float32, those in use until now.
      losses: (replicas,) float32, mean losses since the last meeting.
      velocity: float32 scalar.
      auto: the controller.
      decay: gamma.
    """
    centre = jnp.mean(values)
    delta = preferred(losses, values, auto.loss_scale)
    velocity = auto.momentum * velocity + (1.0 - auto.momentum) * delta
    return centre * (1.0 - decay) + auto.gain * velocity, velocity


def check_explored(which: str, given: Any) -> None:
    """Raises unless it is a mapping from names to what replicas can explore."""
    if given is None:
        return
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
        raise TypeError(
            f"{which}={given!r} must be a mapping from names to numbers, schedules or "
            f"optkit.Spread, such as {which}={{'weight_decay': 0.1}}"
        )
    for name, value in given.items():
        if not isinstance(value, Spread):
            check_number(f"{which}[{name!r}]", value)


def as_spreads(
    name: str,
    learning_rate: ScalarOrSchedule | None,
    explore: Mapping[str, Any] | None,
    outside: Mapping[str, Any] | None,
    shrink: float,
) -> dict[str, Spread]:
    """Returns all that is explored by name, the learning rate first."""
    out: dict[str, Spread] = {}
    if learning_rate is not None:
        check_number("learning_rate", learning_rate)
        out[name] = Spread(learning_rate, shrink=shrink)
    for which, given in (("explore", explore), ("outside", outside)):
        for name, value in (given or {}).items():
            if name in out or name == "alpha":
                raise ValueError(f"{which} has {name!r}, which is there already; rename it")
            out[name] = value if isinstance(value, Spread) else Spread(value)
    return out
