"""Training with checkpoints: a run that is killed and resumed equals one that was never stopped."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optkit.cli.checkpoints import Checkpoints
from optkit.cli.console import notice
from optkit.cli.errors import CommandError
from optkit.cli.logs import TrainingLog
from optkit.cli.running import Prepared, prepare, versions, warm_up
from optkit.cli.settings import TrainRequest, TrainSettings, settle
from optkit.cli.signals import StopRequest
from optkit.cli.tasks import make_task
from optkit.tasks.training import start
from optkit.transforms.schedule_free import evaluation_params

__all__ = ["TRAINING", "Outcome", "Procedure", "carry_out", "load_run", "saved_steps", "train"]

LOG_NAME = "log.jsonl"
_CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a training run ended.

    Attributes:
      settings: what ran.
      started_at: step it began or resumed from.
      step: steps done.
      rows: the rows of the log.
      stopped: whether Ctrl-C ended it before its last step.
    """

    settings: TrainSettings
    started_at: int
    step: int
    rows: list[dict[str, Any]]
    stopped: bool


@dataclasses.dataclass(frozen=True)
class Procedure:
    """What a command runs, by steps with checkpoints.

    Attributes:
      settings: class of its settings.
      prepare: from settings to the compiled step.
      command: its name.
    """

    settings: type[TrainSettings]
    prepare: Callable[[Any], Prepared]
    command: str


def _prepare(settings: TrainSettings) -> Prepared:
    task = make_task(settings.task, settings.task_options)
    return prepare(
        task,
        settings.entry,
        settings.hyperparameters,
        settings.schedule,
        steps=settings.steps,
        diagnose=settings.diagnose,
        measures=settings.measures,
    )


TRAINING = Procedure(TrainSettings, _prepare, "train")


@dataclasses.dataclass
class _Run:
    """The moving parts of a run."""

    state: Any
    params: Any
    step: int = 0
    seconds: float = 0.0
    saved: int = -1


def train(
    request: TrainRequest,
    *,
    on_start: Callable[[TrainSettings, int], None] = lambda settings, step: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Outcome:
    """Trains one method on one task, with a log and checkpoints in ``request.out``.

    Args:
      request: what to run.
      on_start: called with the settings and the first step, before anything is compiled.
      on_row: called with each row that is logged.

    Returns:
      How it ended.

    Raises:
      CommandError: as ``carry_out``.
    """
    return carry_out(TRAINING, request, on_start=on_start, on_row=on_row)


def carry_out(
    procedure: Procedure,
    request: TrainRequest,
    *,
    on_start: Callable[[Any, int], None] = lambda settings, step: None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Outcome:
    """Runs a procedure from its start or its last checkpoint, with log and checkpoints.

    Args:
      procedure: what kind of run it is.
      request: what to run.
      on_start: called with the settings and the first step, before anything is compiled.
      on_row: called with each row that is logged.

    Returns:
      How it ended.

    Raises:
      CommandError: for wrong settings, a directory that holds another run, or a loss that is not
        finite (the last checkpoint stays).
    """
    out = request.out
    log_path = out / LOG_NAME
    latest, saved = _saved_record(out)
    if not request.resume and (latest is not None or log_path.exists()):
        raise CommandError(
            f"{out} already holds a run: pass --resume to go on with it, or another --out"
        )
    _refuse_other(procedure, saved, out)
    settings = settle(procedure.settings, request, saved)
    prepared = procedure.prepare(settings)
    if request.resume and latest is None:
        notice(f"nothing to resume in {out}: starting at step 0")
    on_start(settings, latest or 0)
    with Checkpoints(out / _CHECKPOINTS, settings.keep) as checkpoints:
        run = _begin(prepared, settings, checkpoints, latest, saved)
        started_at = run.step
        with TrainingLog(log_path, after=run.saved) as log, StopRequest() as stop:
            _loop(_Loop(procedure, prepared, settings, run, log, checkpoints, stop, on_row))
    stopped = run.step < settings.steps
    return Outcome(settings, started_at, run.step, log.rows, stopped)


def saved_steps(directory: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a training directory, the oldest first."""
    if not (directory / _CHECKPOINTS).is_dir():
        return []
    with Checkpoints(directory / _CHECKPOINTS) as checkpoints:
        return checkpoints.steps()


def load_run(
    directory: pathlib.Path, procedure: Procedure = TRAINING, step: int | None = None
) -> tuple[Any, Any, dict[str, Any]]:
    """Loads a checkpoint of a training directory.

    Args:
      directory: the ``--out`` of ``optkit train``.
      procedure: what wrote it.
      step: of a checkpoint that is there; None for the newest.

    Returns:
      ``(params, state, record)`` in the structures of the task and the optimizer.

    Raises:
      CommandError: if there is no checkpoint.
    """
    latest, record = _saved_record(directory)
    if latest is None or record is None:
        raise CommandError(
            f"{directory} holds no complete checkpoint of `optkit {procedure.command}`"
        )
    _refuse_other(procedure, record, directory)
    prepared = procedure.prepare(procedure.settings.of_record(record))
    with Checkpoints(directory / _CHECKPOINTS) as checkpoints:
        state, params = checkpoints.restore(
            latest if step is None else step, prepared.abstract_params, prepared.abstract_state
        )
    return params, state, record


def _saved_record(directory: pathlib.Path) -> tuple[int | None, dict[str, Any] | None]:
    """Returns step and record of the newest checkpoint, creating nothing if there is none."""
    if not (directory / _CHECKPOINTS).is_dir():
        return None, None
    with Checkpoints(directory / _CHECKPOINTS) as checkpoints:
        latest = checkpoints.latest()
        return latest, None if latest is None else checkpoints.record(latest)


def _refuse_other(
    procedure: Procedure, record: dict[str, Any] | None, directory: pathlib.Path
) -> None:
    """Raises if a checkpoint is of another kind of run."""
    command = (record or {}).get("command", procedure.command)
    if command != procedure.command:
        raise CommandError(
            f"{directory} holds a run of `optkit {command}`, not of `optkit {procedure.command}`: "
            f"go on with that command, or give another --out"
        )


@dataclasses.dataclass(frozen=True)
class _Loop:
    """What the loop works with."""

    procedure: Procedure
    prepared: Prepared
    settings: TrainSettings
    run: _Run
    log: TrainingLog
    checkpoints: Checkpoints
    stop: StopRequest
    on_row: Callable[[dict[str, Any]], None]


def _begin(
    prepared: Prepared,
    settings: TrainSettings,
    checkpoints: Checkpoints,
    latest: int | None,
    saved: dict[str, Any] | None,
) -> _Run:
    """Returns the run at its newest checkpoint, or at step 0."""
    if latest is None or saved is None:
        state, params = start(prepared.task, prepared.tx, settings.seed)
        run = _Run(state, params)
    else:
        state, params = checkpoints.restore(
            latest, prepared.abstract_params, prepared.abstract_state
        )
        run = _Run(state, params, step=latest, seconds=saved["seconds"], saved=latest)
    if run.step < settings.steps:
        warm_up(prepared, settings.seed, run.state, run.params)
    return run


def _loop(loop: _Loop) -> None:
    """Takes steps until the last one or a request to stop; save at the end in any case."""
    settings, run, task = loop.settings, loop.run, loop.prepared.task
    if run.saved < 0:
        # A checkpoint of step 0 lets a resume be checked against the settings from the very start.
        loop.log.append({"step": 0, "seconds": 0.0, "held_out": task.evaluate(run.params)})
        _save(loop)
    while run.step < settings.steps and not loop.stop.requested:
        begin = time.perf_counter()
        batch = task.batch(settings.seed, run.step)
        run.state, run.params, metrics = loop.prepared.step(batch, run.state, run.params)
        run.step += 1
        evaluates = run.step % settings.eval_every == 0 or run.step == settings.steps
        logs = evaluates or run.step % settings.log_every == 0
        saves = run.step % settings.checkpoint_every == 0
        if logs or saves:
            # Waiting only where a number is needed lets accelerators run ahead of the host.
            jax.block_until_ready((run.state, run.params, metrics))
        run.seconds += time.perf_counter() - begin
        if logs or saves:
            watched = loop.prepared.watched
            _refuse_divergence(run, watched, float(np.asarray(metrics[watched])))
        if logs:
            _log(loop, metrics, evaluates=evaluates)
        if saves:
            _save(loop)
    if run.saved < run.step:
        _save(loop)


def _refuse_divergence(run: _Run, name: str, value: float) -> None:
    """Raises if the loss is not finite, before anything of it is logged or saved."""
    if not math.isfinite(value):
        raise CommandError(
            f"the {name.replace('_', ' ')} became {value} at step {run.step}: "
            f"try a smaller learning_rate (the checkpoint of step {run.saved} stays)",
            exit_code=1,
        )


def _log(loop: _Loop, metrics: dict[str, jax.Array], *, evaluates: bool) -> None:
    """Appends the row of the current step."""
    run = loop.run
    scalars = {name: float(np.asarray(value)) for name, value in metrics.items()}
    counts = loop.prepared.counts(run.step)
    row: dict[str, Any] = {"step": run.step, "seconds": run.seconds, **counts, **scalars}
    if evaluates:
        used = evaluation_params(run.state, run.params)
        row["held_out"] = loop.prepared.task.evaluate(used)
    every = loop.settings.diagnose
    # A row tells of a measurement that was made since the row before.
    if every is not None and (run.step - 1) % every < loop.settings.log_every:
        row |= loop.prepared.measure(run.state, run.params)
    loop.log.append(row)
    loop.on_row(row)


def _save(loop: _Loop) -> None:
    """Saves a checkpoint after all rows up to its step are on disk."""
    run = loop.run
    loop.log.sync()
    record = {
        "command": loop.procedure.command,
        **loop.settings.record(),
        "step": run.step,
        "seconds": run.seconds,
        "versions": versions(),
    }
    loop.checkpoints.save(run.step, run.params, run.state, record)
    run.saved = run.step
