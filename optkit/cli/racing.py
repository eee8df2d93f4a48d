"""A race: several methods and seeds on one task, interleaved, each on a clock of its own."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from optkit.cli.hyperparameters import find_recipe
from optkit.cli.parsing import MethodSpec
from optkit.cli.running import Prepared, prepare, warm_up
from optkit.cli.schedules import CONSTANT, RateSchedule
from optkit.cli.signals import StopRequest
from optkit.tasks import Task
from optkit.tasks.training import start
from optkit.transforms.schedule_free import evaluation_params

__all__ = ["Observer", "RaceSettings", "Run", "race"]

_BLOCK = 10  # steps a run takes before the next one has its turn


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaceSettings:
    """What is raced, and until when.

    Attributes:
      entrants: the methods with their hyperparameters.
      seeds: each entrant runs once with each; equal seeds share initial parameters and batches.
      steps: limit of steps of each run, or None.
      seconds: limit of training seconds of each run, or None.
      eval_every: steps between evaluations.
      schedule: the course of the learning rates, the same for all.
      diagnose: steps from one measurement to the next; None measures nothing.
      measures: what is measured beside sizes and top singular values, of `measuring.MEASURES`.
    """

    entrants: tuple[MethodSpec, ...]
    seeds: tuple[int, ...]
    steps: int | None
    seconds: float | None
    eval_every: int
    schedule: RateSchedule = CONSTANT
    diagnose: int | None = None
    measures: tuple[str, ...] = ()


@dataclasses.dataclass
class Run:
    """One entrant with one seed.

    Attributes:
      status: "waiting", "running", "finished", "diverged" (a loss that is not finite) or "stopped".
      losses: ``(step, seconds, mean loss since the row before)``.
      held_out: what the task's evaluation returned, with ``step`` and ``seconds``.
      diagnostics: what was measured last before each evaluation, of attention at it, as ``values``
        with ``step``.
    """

    label: str
    seed: int
    compile_seconds: float
    state_bytes: int
    step: int = 0
    seconds: float = 0.0
    status: str = "waiting"
    losses: list[tuple[int, float, float]] = dataclasses.field(default_factory=list)
    held_out: list[dict[str, float]] = dataclasses.field(default_factory=list)
    diagnostics: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Observer(Protocol):
    """Is told how a race goes; called outside the training clocks."""

    def compiling(self, label: str) -> None:
        """An entrant is about to be compiled."""

    def entered(self, run: Run) -> None:
        """A run is ready to start."""

    def moved(self, run: Run) -> None:
        """A run has taken some steps, was evaluated or has ended."""


@dataclasses.dataclass
class _Lane:
    """A run with the arrays that it trains."""

    run: Run
    prepared: Prepared
    state: Any
    params: Any
    pending: list[float] = dataclasses.field(default_factory=list)


def race(task: Task, settings: RaceSettings, observer: Observer) -> tuple[list[Run], bool]:
    """Runs the race.

    Compilation and evaluation are outside the clock; batches are inside. The run that is furthest
    behind moves next (in steps, or in seconds if there is no limit of steps), a few steps at a
    time, so that a disturbance of the machine hits all alike.

    Args:
      task: the task.
      settings: the entrants and the limits.
      observer: is told of the progress.

    Returns:
      The runs, and whether Ctrl-C stopped them.

    Raises:
      CommandError: for unknown methods or refused hyperparameters, before anything is compiled.
    """
    prepared = {
        spec.label: prepare(
            task,
            find_recipe(spec.name),
            spec.hyperparameters,
            settings.schedule,
            steps=settings.steps,
            diagnose=settings.diagnose,
            measures=settings.measures,
        )
        for spec in settings.entrants
    }
    with StopRequest() as stop:
        lanes = _enter(prepared, settings.seeds, observer, stop)
        turn = 0
        while not stop.requested:
            active = [lane for lane in lanes if lane.run.status in ("waiting", "running")]
            if not active:
                break
            # Equal runs go there and back (first to last, last to first) to share any drift evenly.
            order = active if (turn // len(active)) % 2 == 0 else active[::-1]
            lane = min(order, key=lambda lane: _progress(lane.run, settings))
            _advance(lane, settings, stop)
            observer.moved(lane.run)
            turn += 1
        _stop(lanes, observer)
    return [lane.run for lane in lanes], stop.requested


def _stop(lanes: list[_Lane], observer: Observer) -> None:
    """Evaluates the runs that did not get to their end, so that they can be compared."""
    for lane in lanes:
        if lane.run.status in ("waiting", "running"):
            lane.run.status = "stopped"
            _evaluate(lane)
            observer.moved(lane.run)


def _progress(run: Run, settings: RaceSettings) -> float:
    """Returns how far a run is, in the unit that ends the race."""
    return run.seconds if settings.steps is None else run.step


def _enter(
    prepared: Mapping[str, Prepared], seeds: tuple[int, ...], observer: Observer, stop: StopRequest
) -> list[_Lane]:
    """Compiles each entrant once and start a lane for each seed."""
    lanes = []
    for label, entrant in prepared.items():
        if stop.requested:
            break
        observer.compiling(label)
        seconds = None
        for seed in seeds:
            state, params = start(entrant.task, entrant.tx, seed)
            if seconds is None:
                seconds = warm_up(entrant, seed, state, params)
            run = Run(label, seed, compile_seconds=seconds, state_bytes=entrant.state_bytes)
            lane = _Lane(run, entrant, state, params)
            _evaluate(lane)
            lanes.append(lane)
            observer.entered(run)
    return lanes


def _advance(lane: _Lane, settings: RaceSettings, stop: StopRequest) -> None:
    """Takes a block of steps on the clock, then evaluate off the clock where it is due."""
    run = lane.run
    run.status = "running"
    to_evaluation = settings.eval_every - run.step % settings.eval_every
    for _ in range(min(_BLOCK, to_evaluation)):
        loss = _step(lane)
        if not math.isfinite(loss):
            run.status = "diverged"
        elif _reached(run.step, settings.steps) or _reached(run.seconds, settings.seconds):
            run.status = "finished"
        if run.status != "running" or stop.requested:
            break
    if run.status == "diverged":
        lane.pending.clear()
        return
    run.losses.append((run.step, run.seconds, float(np.mean(lane.pending))))
    lane.pending.clear()
    if run.status == "finished" or run.step % settings.eval_every == 0:
        _evaluate(lane)


def _step(lane: _Lane) -> float:
    """Takes one step on the clock and return its loss."""
    run, task = lane.run, lane.prepared.task
    begin = time.perf_counter()
    batch = task.batch(run.seed, run.step)
    lane.state, lane.params, metrics = lane.prepared.step(batch, lane.state, lane.params)
    jax.block_until_ready((lane.state, lane.params, metrics))
    run.seconds += time.perf_counter() - begin
    run.step += 1
    loss = float(np.asarray(metrics["loss"]))
    lane.pending.append(loss)
    return loss


def _reached(value: float, limit: float | None) -> bool:
    """Returns whether a limit is set and reached."""
    return limit is not None and value >= limit


def _evaluate(lane: _Lane) -> None:
    """Evaluates a lane unless that was done at this very step."""
    run = lane.run
    if run.held_out and run.held_out[-1]["step"] == run.step:
        return
    scores = lane.prepared.task.evaluate(evaluation_params(lane.state, lane.params))
    run.held_out.append({"step": run.step, "seconds": run.seconds, **scores})
    measure = lane.prepared.measure
    found = measure(lane.state, lane.params)["diagnostics"] if run.step else {}
    if found:
        run.diagnostics.append({"step": run.step, "values": found})
    if not math.isfinite(scores[lane.prepared.task.metric]):
        run.status = "diverged"
