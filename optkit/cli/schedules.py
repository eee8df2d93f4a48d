"""The course of the learning rate over a run: warm-up, then constant, linear or cosine."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from optkit.cli.errors import CommandError, suggestion

__all__ = ["CONSTANT", "KEYS", "KINDS", "RateSchedule", "read_schedule"]

KINDS = ("constant", "linear", "cosine")
KEYS = ("schedule", "warmup", "final")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """A course of the learning rate; the value given for it is the peak.

    Attributes:
      kind: "constant", "linear" or "cosine": how it goes on after the warm-up.
      warmup: steps of a linear rise; step n of them takes n/warmup of the peak, so that the first
        step is not lost.
      final: share of the peak that a linear or cosine course reaches at the end of the run.
    """

    kind: str = "constant"
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            close = suggestion(self.kind, KINDS)
            raise CommandError(f"unknown schedule {self.kind!r}{close}; known: {known}")
        if self.warmup < 0:
            raise CommandError(f"warmup={self.warmup} must be at least 0 steps")
        if not 0.0 <= self.final <= 1.0:
            raise CommandError(f"final={self.final} is a share of the learning rate, from 0 to 1")
        if self.final and not self.decays:
            raise CommandError(
                f"final={self.final} needs a schedule that falls: linear or cosine, not constant"
            )

    @property
    def decays(self) -> bool:
        """Whether the course depends on the number of steps."""
        return self.kind != "constant"

    def check(self, steps: int | None) -> None:
        """Raises CommandError if the course does not fit into a run of ``steps``."""
        if steps is None and self.decays:
            raise CommandError(
                f"schedule {self.kind} needs to know where the run ends: give steps too"
            )
        if steps is not None and self.warmup >= steps:
            raise CommandError(
                f"warmup={self.warmup} leaves nothing of a run of {steps} steps; shorten it"
            )

    def over(self, peak: float, steps: int | None) -> optax.ScalarOrSchedule:
        """Returns the learning rate of a run.

        Args:
          peak: the learning rate that was given.
          steps: steps of the run; None only if nothing decays.

        Returns:
          The number itself if it never changes, or an Optax schedule.

        Raises:
          CommandError: as ``check``.

        Example:
          >>> rate = RateSchedule(kind="linear", warmup=2, final=0.5).over(1.0, 6)
          >>> [round(float(rate(step)), 3) for step in range(6)]
          [0.5, 1.0, 1.0, 0.875, 0.75, 0.625]
        """
        self.check(steps)
        if not self.decays and not self.warmup:
            return peak
        body = self._after_warmup(peak, (steps or 0) - self.warmup)
        if not self.warmup:
            return body
        rise = optax.linear_schedule(0.0, peak, self.warmup)

        def shifted(count: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
            return rise(count + 1)

        return optax.join_schedules([shifted, body], [self.warmup])

    def _after_warmup(
        self, peak: float, steps: int
    ) -> Callable[[jax.typing.ArrayLike], jax.typing.ArrayLike]:
        """Returns the schedule of the steps behind the warm-up."""
        if self.kind == "linear":
            return optax.linear_schedule(peak, peak * self.final, steps)
        if self.kind == "cosine":
            return optax.cosine_decay_schedule(peak, steps, alpha=self.final)
        return optax.constant_schedule(peak)


CONSTANT = RateSchedule()


def read_schedule(settings: Mapping[str, Any]) -> RateSchedule | None:
    """Returns the schedule that a configuration or command line asks for.

    Args:
      settings: may hold ``schedule``, ``warmup`` and ``final``.

    Returns:
      The schedule, or None if none of the three is there.

    Raises:
      CommandError: for an unknown kind or a number out of range.

    Example:
      >>> read_schedule({"steps": 10, "warmup": 3})
      RateSchedule(kind='constant', warmup=3, final=0.0)
    """
    names = dict(zip(KEYS, ("kind", "warmup", "final"), strict=True))
    given = {names[key]: settings[key] for key in KEYS if key in settings}
    return RateSchedule(**given) if given else None
