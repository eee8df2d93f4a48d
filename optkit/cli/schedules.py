"""The course of the learning rate over a run: one of the kinds here, or a file's."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax

from optkit import schedules
from optkit.cli.errors import CommandError, message_of, suggestion

__all__ = ["CONSTANT", "FILE", "KEYS", "KINDS", "RateSchedule", "read_schedule"]

KINDS = ("constant", "linear", "cosine", "inverse_sqrt", "wsd", "wsd_s")
FILE = "file"
KEYS = ("schedule", "warmup", "final", "decay", "cycles")
_FALL = ("linear", "cosine", "wsd", "wsd_s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateSchedule:
    """A course of the learning rate; the value given for it is the peak.

    Attributes:
      kind: how it goes on after the warm-up, one of ``KINDS``, or "file" for ``course``.
      warmup: steps of a linear rise; step n of them takes n/warmup of the peak, so that the first
        step is not lost.
      final: share of the peak at the end of the run (of wsd_s: of each cycle). The falls of wsd
        and wsd_s are inverse, to 0 linear.
      decay: of wsd and wsd_s: the fall's share of the run, of a cycle; above 1 its steps.
      cycles: of wsd_s, of equal length.
      course: what a file holds, in place of all of these, with a peak of 1; multiplied by the
        given rate.
    """

    kind: str = "constant"
    warmup: int = 0
    final: float = 0.0
    decay: float = 0.1
    cycles: int = 1
    course: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS and not (self.kind == FILE and self.course):
            known = ", ".join(KINDS)
            close = suggestion(self.kind, KINDS)
            raise CommandError(
                f"unknown schedule {self.kind!r}{close}; known: {known}, or a file NAME.json"
            )
        if self.warmup < 0:
            raise CommandError(f"warmup={self.warmup} must be at least 0 steps")
        if not 0.0 <= self.final <= 1.0:
            raise CommandError(f"final={self.final} is a share of the learning rate, from 0 to 1")
        if self.final and not self.decays:
            raise CommandError(
                f"final={self.final} needs a schedule that falls: {', '.join(_FALL)}, "
                f"not {self.kind}"
            )
        for name, default, kinds in (("decay", 0.1, _FALL[2:]), ("cycles", 1, _FALL[3:])):
            value = getattr(self, name)
            if value <= 0:
                raise CommandError(f"{name}={value} must be above 0")
            if value != default and self.kind not in kinds:
                raise CommandError(f"{name}={value} is of schedule {' and '.join(kinds)} only")
        if self.kind == "inverse_sqrt" and not self.warmup:
            raise CommandError("schedule inverse_sqrt falls from the end of its warm-up: give one")

    @property
    def decays(self) -> bool:
        """Whether the course depends on the number of steps."""
        return self.kind in _FALL

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
        end = self.unit(steps).steps
        if self.kind == FILE and end is not None and (steps is None or steps > end):
            raise CommandError(f"the schedule ends after {end} steps: give at most so many")

    def unit(self, steps: int | None) -> schedules.Schedule:
        """Returns the course with a peak of 1.

        Args:
          steps: steps of the run; None only if nothing decays.

        Returns:
          A schedule that can be drawn and saved.

        Raises:
          CommandError: phases that do not fit into the run, or a file that holds no schedule.
        """
        rise: dict[str, Any] = {"warmup": self.warmup, "skip_zero": True}
        whole = steps or 0
        try:
            if self.kind == FILE:
                return schedules.from_dict(self.course or {})
            if self.kind == "constant":
                return schedules.constant(1.0, **rise)
            if self.kind == "inverse_sqrt":
                return schedules.inverse_sqrt(1.0, **rise)
            if self.kind in ("linear", "cosine"):
                build = schedules.linear if self.kind == "linear" else schedules.cosine
                return build(1.0, whole, final=self.final, **rise)
            fall: dict[str, Any] = {
                "decay": float(self.decay),
                "final": self.final,
                "shape": "inverse" if self.final else "linear",
            }
            if self.kind == "wsd":
                return schedules.wsd(1.0, whole, **rise, **fall)
            ends = [whole * (i + 1) // self.cycles for i in range(self.cycles)]
            return schedules.wsd_s(1.0, ends, **rise, **fall)
        except ValueError as error:
            raise CommandError(f"schedule {self.kind}: {message_of(error)}") from error

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
        if (self.kind == "constant" and not self.warmup) or peak == 0:
            return peak
        return self.unit(steps).scaled(peak)


CONSTANT = RateSchedule()


def _of_file(path: Path, given: Mapping[str, Any]) -> RateSchedule:
    others = [name for name in given if name != "kind"]
    if others:
        raise CommandError(f"{path} says all of the course: leave out {', '.join(others)}")
    if not path.is_file():
        raise CommandError(
            f"schedule {path}: no such file; give one of `optkit schedule refine --out` or "
            f"optkit.schedules.save, or one of {', '.join(KINDS)}"
        )
    try:
        course = schedules.load(path)
        single = [value for phase in course.phases for value in phase.values]
        largest = max([float(course.points()[1].max()), *single])
        if largest > 0 and abs(largest - 1.0) > 1e-6:
            course = course.scaled(1.0 / largest)
        return RateSchedule(kind=FILE, course=course.to_dict())
    except (OSError, ValueError) as error:
        raise CommandError(f"schedule {path}: {message_of(error)}") from error


def read_schedule(settings: Mapping[str, Any]) -> RateSchedule | None:
    """Returns the schedule that a configuration or command line asks for.

    Args:
      settings: may hold ``schedule``, a kind or a file ``NAME.json``, ``warmup``, ``final``,
        ``decay`` and ``cycles``. Of a file the course counts: its largest value becomes 1.

    Returns:
      The schedule, or None if none of these is there.

    Raises:
      CommandError: for an unknown kind, a file that holds none, or a number out of range.

    Example:
      >>> read_schedule({"steps": 10, "warmup": 3}).warmup
      3
    """
    names = {key: "kind" if key == "schedule" else key for key in KEYS}
    given = {names[key]: settings[key] for key in KEYS if key in settings}
    if str(given.get("kind", "")).endswith(".json"):
        return _of_file(Path(given["kind"]), given)
    return RateSchedule(**given) if given else None
