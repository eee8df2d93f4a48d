"""What schedules are made of: phases of a shape and a length, as data that JSON can hold."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit.transforms.hyperparams import check_choice

Shape = Literal["constant", "linear", "cosine", "inverse", "sqrt", "exponential", "power", "points"]
_FORM = "optkit.schedule"


def check_rate(name: str, value: Any, *, above: bool = False) -> float:
    """Returns a finite number of at least 0 (``above``: above 0) as a float, or raises."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (above and value == 0):
        low = "above 0" if above else "of at least 0"
        raise ValueError(
            f"{name}={value!r} must be a finite Python number {low}; for a traced rate multiply: "
            "lambda count: rate * schedule(count)"
        )
    return float(value)


def check_steps(name: str, value: Any, low: int = 1) -> int:
    """Returns a whole number of steps of at least ``low``, or raises."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name}={value!r} must be a whole number of steps, at least {low}")
    return int(value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a schedule; ``x`` is the share of it that has passed, 0 at its first step.

    The shapes, from ``first`` at ``x = 0`` to ``last`` at ``x = 1``: "constant"; "linear";
    "cosine", half a wave; "inverse", whose reciprocal is linear; "sqrt", linear in ``sqrt(x)``;
    "exponential", whose logarithm is linear; "power", ``first*(1 + k/scale)**-exponent`` at its
    step ``k``, not below ``last``; "points", one of ``values`` a step.

    Attributes:
      shape: see above.
      steps: length; None for the last phase, if it is constant or a power, to go on for ever.
      first: value at its first step, at least 0.
      last: value that its end has, which is the next phase's first step.
      late: take ``x`` of step 0 as that of step 1, so that the first step falls at once.
      scale: of "power", steps.
      exponent: of "power".
      values: of "points".
    """

    shape: Shape
    steps: int | None
    first: float = 0.0
    last: float = 0.0
    late: bool = False
    scale: float = 1.0
    exponent: float = 0.5
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_choice("shape", self.shape, get_args(Shape))
        if self.steps is not None:
            check_steps("steps", self.steps)
        elif self.shape not in ("constant", "power"):
            raise ValueError(f"a {self.shape} phase needs a length: steps=None")
        positive = self.shape in ("inverse", "exponential")
        for name in ("first", "last"):
            try:
                check_rate(name, getattr(self, name), above=positive)
            except ValueError as error:
                raise ValueError(f"a phase of shape {self.shape!r}: {error}") from None
        check_rate("scale", self.scale, above=True)
        check_rate("exponent", self.exponent)
        if (self.shape == "points") != bool(self.values):
            raise ValueError("a phase has values if it is of shape 'points', and only then")
        if self.shape == "points":
            for value in self.values:
                check_rate("values", value)
            if len(self.values) != self.steps:
                raise ValueError(f"{len(self.values)} values for a phase of {self.steps} steps")

    def at(self, count: jax.Array) -> jax.Array:
        """Returns the values at steps counted from the phase's own begin, float32."""
        k = jnp.maximum(count, 1 if self.late else 0)
        if self.shape == "points":
            place = jnp.minimum(k, len(self.values) - 1).astype(jnp.int32)
            return jnp.asarray(self.values, jnp.float32)[place]
        k = (k if self.steps is None else jnp.minimum(k, self.steps)).astype(jnp.float32)
        a, b = self.first, self.last
        if self.shape == "constant":
            return jnp.full_like(k, a)
        if self.shape == "power":
            return jnp.maximum(a * (1.0 + k / self.scale) ** -self.exponent, b)
        x = k / float(self.steps or 1)
        if self.shape == "linear":
            return a * (1.0 - x) + b * x
        if self.shape == "cosine":
            return b + (a - b) * 0.5 * (1.0 + jnp.cos(jnp.pi * x))
        if self.shape == "inverse":
            return a / ((1.0 - x) + x * (a / b))
        if self.shape == "sqrt":
            return a + (b - a) * jnp.sqrt(x)
        return a * jnp.exp(x * math.log(b / a))

    def scaled(self, factor: float) -> Self:
        """Returns the phase with all values multiplied."""
        values = tuple(factor * value for value in self.values)
        return dataclasses.replace(
            self, first=factor * self.first, last=factor * self.last, values=values
        )

    def cut(self, steps: int) -> Self:
        """Returns the first steps of the phase, if it can be cut and stay what it is."""
        if self.shape == "points":
            return dataclasses.replace(self, steps=steps, values=self.values[:steps])
        if self.shape not in ("constant", "power", "linear", "exponential"):
            raise ValueError(
                f"a phase of shape {self.shape!r} keeps its shape only as a whole and cannot be cut"
            )
        if self.shape in ("constant", "power"):
            return dataclasses.replace(self, steps=steps)
        end = float(self.at(jnp.asarray(steps)))
        return dataclasses.replace(self, steps=steps, last=end)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate over the steps of a run: phases, one after the other, then the last value.

    It is called with the number of finished updates, an int or a traced array of any shape, and
    answers in float32, so that it serves wherever Optax and optkit take a schedule. Equal schedules
    are equal and hashable, so that equal optimizers are one object and compile once.

    Attributes:
      phases: tuple of ``Phase``.
      name: for pictures.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.wsd(1.0, 100, warmup=10, decay=20)
      >>> [round(float(rate(t)), 2) for t in (0, 5, 10, 80, 100)]
      [0.0, 0.5, 1.0, 1.0, 0.1]
      >>> [(phase.shape, phase.steps) for phase in rate.phases]
      [('linear', 10), ('constant', 70), ('inverse', 20)]
    """

    phases: tuple[Phase, ...]
    name: str = "schedule"

    def __post_init__(self) -> None:
        if not self.phases or not all(isinstance(phase, Phase) for phase in self.phases):
            raise ValueError(f"a schedule needs a tuple of phases, not {self.phases!r}")
        if any(phase.steps is None for phase in self.phases[:-1]):
            raise ValueError("only the last phase of a schedule may go on for ever")

    @property
    def starts(self) -> tuple[int, ...]:
        """The first step of each phase."""
        lengths = [phase.steps or 0 for phase in self.phases]
        return tuple(itertools.accumulate(lengths[:-1], initial=0))

    @property
    def steps(self) -> int | None:
        """The length, after which the last value holds; None if the last phase has no end."""
        last = self.phases[-1].steps
        return None if last is None else self.starts[-1] + last

    def __call__(self, count: int | jax.Array) -> jax.Array:
        """Returns the learning rate after ``count`` finished updates, float32."""
        t = jnp.maximum(jnp.asarray(count), 0)
        out = self.phases[0].at(t)
        for start, phase in zip(self.starts[1:], self.phases[1:], strict=True):
            out = jnp.where(t < start, out, phase.at(t - start))
        return out

    def scaled(self, factor: float) -> "Schedule":
        """Returns the schedule with all values multiplied by a number."""
        factor = check_rate("factor", factor)
        return dataclasses.replace(self, phases=tuple(p.scaled(factor) for p in self.phases))

    def points(self, most: int = 400, end: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns steps and values that draw the schedule, with both sides of each jump.

        Args:
          most: about how many points at most.
          end: last step; None for the schedule's own end, or, if it has none, for ten times the
            begin of its last phase, at least 100.

        Returns:
          ``(steps, values)``: int64 and float32 arrays.
        """
        if end is None:
            end = self.steps if self.steps is not None else max(100, 10 * self.starts[-1])
        chosen = {int(t) for t in np.linspace(0, end, min(most, end + 1))}
        chosen |= {t for start in self.starts for t in (start - 1, start) if 0 <= t <= end}
        steps = np.array(sorted(chosen), np.int64)
        return steps, np.asarray(self(jnp.asarray(steps, jnp.int32)))

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values from which ``from_dict`` makes an equal schedule."""
        kept = {field.name: field.default for field in dataclasses.fields(Phase)}
        phases = [
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in dataclasses.asdict(phase).items()
                if name in ("shape", "steps") or value != kept[name]
            }
            for phase in self.phases
        ]
        return {"form": _FORM, "version": 1, "name": self.name, "phases": phases}


def from_dict(data: Mapping[str, Any]) -> Schedule:
    """Makes a schedule of what ``Schedule.to_dict`` gave.

    Args:
      data: JSON values.

    Returns:
      The schedule.

    Raises:
      ValueError: the data are no schedule, of a version that is not known, or contradict
        themselves.

    Example:
      >>> import optkit
      >>> rate = optkit.schedules.cosine(0.1, 50)
      >>> optkit.schedules.from_dict(rate.to_dict()) == rate
      True
    """
    if not isinstance(data, Mapping) or data.get("form") != _FORM:
        raise ValueError(f"these data are no schedule: 'form' is not {_FORM!r}")
    if data.get("version") != 1:
        raise ValueError(f"version {data.get('version')!r} of a schedule is not known; known: 1")
    known = {field.name for field in dataclasses.fields(Phase)}
    phases = []
    for index, given in enumerate(data.get("phases", ())):
        unknown = sorted({*given} - known)
        if unknown:
            raise ValueError(f"phase {index} of the schedule has unknown fields: {unknown}")
        phases.append(Phase(**{**given, "values": tuple(given.get("values", ()))}))
    return Schedule(tuple(phases), str(data.get("name", "schedule")))
