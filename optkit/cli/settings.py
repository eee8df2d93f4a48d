"""What a training run is, and how a resumed run is held to what was saved."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar

from optkit.catalogue import Entry
from optkit.cli.checkpoints import KEEP
from optkit.cli.errors import CommandError
from optkit.cli.hyperparameters import find_recipe, resolved
from optkit.cli.measuring import EVERY
from optkit.cli.schedules import CONSTANT, RateSchedule
from optkit.cli.tasks import make_task
from optkit.cli.values import plain
from optkit.tasks import Task
from optkit.tasks.population import PopulationTask

__all__ = ["TrainRequest", "TrainSettings", "settle"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What was asked for; None means not given: the saved value, or else the default."""

    method: str
    out: pathlib.Path
    hyperparameters: Mapping[str, Any] | None = None
    task: str | None = None
    task_options: Mapping[str, Any] | None = None
    seed: int | None = None
    steps: int | None = None
    schedule: RateSchedule | None = None
    log_every: int | None = None
    eval_every: int | None = None
    checkpoint_every: int | None = None
    diagnose: int | None = None
    measures: tuple[str, ...] | None = None
    keep: int | None = None
    resume: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """A training run with nothing left open.

    Attributes:
      FIXED: fields that a resumed run must share with the saved one. The number of steps may change
        unless the learning rate falls towards it, and how often a checkpoint is written, or how
        many are kept, changes no number.
      DEFAULT_TASK: where none is named.
      diagnose: steps from one measurement to the next; None measures nothing.
      measures: what is measured beside sizes and top singular values, of `measuring.MEASURES`.
    """

    FIXED: ClassVar[tuple[str, ...]] = (
        "method",
        "task",
        "task_options",
        "seed",
        "schedule",
        "log_every",
        "eval_every",
        "diagnose",
        "measures",
    )
    DEFAULT_TASK: ClassVar[str] = "bytelm"

    method: str
    hyperparameters: dict[str, Any]
    task: str
    task_options: dict[str, Any]
    seed: int
    steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    schedule: RateSchedule = CONSTANT
    diagnose: int | None = None
    measures: tuple[str, ...] | None = None
    keep: int = KEEP

    @staticmethod
    def make_task(name: str, options: Mapping[str, Any]) -> Task | PopulationTask:
        """Builds the task of such a run."""
        return make_task(name, options)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """Returns the settings that a checkpoint was saved with."""
        names = {field.name for field in dataclasses.fields(cls)}
        found = {name: value for name, value in record.items() if name in names}
        return cls(**{**found, "schedule": RateSchedule(**found["schedule"])})

    @property
    def entry(self) -> Entry:
        """The method."""
        return find_recipe(self.method)

    @property
    def arguments(self) -> dict[str, Any]:
        """What the method is called with."""
        return self.hyperparameters

    def record(self) -> dict[str, Any]:
        """Returns what a checkpoint says of its run: these settings and every value in force."""
        return {
            **plain(dataclasses.asdict(self)),
            "in_force": resolved(self.entry, self.arguments),
        }


Settings = TypeVar("Settings", bound=TrainSettings)


def settle(
    kind: type[Settings], request: TrainRequest, saved: Mapping[str, Any] | None
) -> Settings:
    """Fills in what was not asked for, and refuse what contradicts the saved run.

    Hyperparameters, task options and schedule are taken as complete sets if given at all.

    Args:
      kind: what is run: settings of training, or those that have more fields.
      request: what was asked for, with such fields too.
      saved: record of the newest checkpoint, or None for a new run.

    Returns:
      The settings of the run.

    Raises:
      CommandError: naming each difference to the saved run, or a number that makes no sense.
    """
    known = saved or {}

    def choose(name: str, default: Any) -> Any:
        asked = getattr(request, name)
        return asked if asked is not None else known.get(name, default)

    task_name = choose("task", kind.DEFAULT_TASK)
    task_options = dict(choose("task_options", {}))
    steps = request.steps or known.get("steps")
    steps = steps or kind.make_task(task_name, task_options).default_steps
    tenth = max(1, steps // 10)
    schedule = request.schedule or RateSchedule(**known.get("schedule", {}))
    schedule.check(steps)
    own = {*_names(kind)} - {*_names(TrainSettings)}
    measures = choose("measures", None)
    settings = kind(
        method=request.method,
        hyperparameters=dict(choose("hyperparameters", {})),
        task=task_name,
        task_options=task_options,
        seed=choose("seed", 0),
        steps=steps,
        log_every=choose("log_every", 1),
        eval_every=choose("eval_every", tenth),
        checkpoint_every=choose("checkpoint_every", tenth),
        keep=choose("keep", KEEP),
        schedule=schedule,
        diagnose=choose("diagnose", EVERY if measures else None),
        measures=tuple(measures) if measures else None,
        **{name: choose(name, None) for name in own},
    )
    if saved is not None:
        _refuse_differences(settings, saved, request.out)
    return settings


def _names(kind: type[TrainSettings]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _refuse_differences(
    settings: TrainSettings, saved: Mapping[str, Any], out: pathlib.Path
) -> None:
    """Raises if a resumed run would not be the saved run."""
    new = settings.record()
    fixed = (*settings.FIXED, "steps") if settings.schedule.decays else settings.FIXED
    pairs = [(name, saved.get(name), new[name]) for name in fixed]
    if new["method"] == saved["method"]:
        old, now = saved["in_force"], new["in_force"]
        names = sorted({*old, *now})
        pairs += [(name, old.get(name, "absent"), now.get(name, "absent")) for name in names]
    differences = [f"{name}: saved {old!r}, now {now!r}" for name, old, now in pairs if old != now]
    if differences:
        raise CommandError(
            f"{out} holds another run ({'; '.join(differences)}): "
            "resume it with its own settings, or give another --out"
        )
