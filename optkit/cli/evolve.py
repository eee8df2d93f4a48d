"""``optkit evolve``: a population method on a task, with progress, checkpoints and a report."""

from typing import Annotated, Any

import typer

from optkit.cli import choices
from optkit.cli.console import make_console, say
from optkit.cli.errors import STOPPED, require_extra
from optkit.cli.evolution import EvolveRequest, EvolveSettings, evolve
from optkit.cli.evolution_report import write_evolution_report
from optkit.cli.options import (
    Config,
    EvalEvery,
    Final,
    LogEvery,
    Method,
    Out,
    Params,
    SaveEvery,
    Schedule,
    Seed,
    TaskOptions,
    Warmup,
)
from optkit.cli.parsing import load_config
from optkit.cli.progress import EvolveProgress
from optkit.tasks import population as population_tasks

__all__ = ["evolve_method"]

TaskName = Annotated[
    str | None,
    typer.Option(
        help=f"What to evolve: {', '.join(population_tasks.names())}.",
        show_default=EvolveSettings.DEFAULT_TASK,
    ),
]
Population = Annotated[
    int | None, typer.Option(min=1, help="Members of a generation.", show_default="256 or method's")
]
Generations = Annotated[
    int | None, typer.Option(min=1, help="Generations of a run.", show_default="task's")
]
Optimizer = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:NAME=VALUE,...]",
        help="What follows the method: adam, sgd or a recipe of the catalogue.",
        show_default="sgd after methods with a step of their own, else adam",
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option(min=0.0, help="Of the optimizer.", show_default="adam 0.03, sgd 1"),
]


def evolve_method(
    method: Method,
    task: TaskName = None,
    population: Population = None,
    generations: Generations = None,
    seed: Seed = None,
    param: Params = None,
    optimizer: Optimizer = None,
    learning_rate: LearningRate = None,
    config: Config = None,
    task_option: TaskOptions = None,
    schedule: Schedule = None,
    warmup: Warmup = None,
    final: Final = None,
    out: Out = None,
    checkpoint_every: SaveEvery = None,
    log_every: LogEvery = None,
    eval_every: EvalEvery = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last save.")] = False,
) -> None:
    """Evolve a model without gradients: a population method on a task, with log and report."""
    settings = choices.overlay(
        load_config(config),
        **{"task": task, "population": population, "generations": generations, "seed": seed},
        **{"optimizer": optimizer, "learning_rate": learning_rate, "out": out},
        **{"schedule": schedule, "warmup": warmup, "final": final, "log_every": log_every},
        **{"eval_every": eval_every, "checkpoint_every": checkpoint_every},
    )
    # Found out now rather than after minutes of evaluations.
    require_extra(["matplotlib"], purpose="the report of a run")
    request = _request(settings, method, param, task_option, resume)
    with EvolveProgress(make_console()) as progress:
        outcome = evolve(request, on_start=progress.start, on_row=progress.row)
    done = f"generation {outcome.step} of {outcome.settings.steps}"
    files = write_evolution_report(outcome, request.out)
    if outcome.stopped:
        say(f"stopped at {done}, log and checkpoints in {request.out}; --resume goes on")
    elif outcome.started_at == outcome.step:
        say(f"nothing left to do: the run is at {done}, log and checkpoints in {request.out}")
    else:
        say(f"done: {done}, log and checkpoints in {request.out}")
    say("wrote " + ", ".join(str(path) for path in files))
    if outcome.stopped:
        raise typer.Exit(STOPPED)


def _request(
    settings: dict[str, Any],
    method: str,
    words: list[str] | None,
    task_words: list[str] | None,
    resume: bool,
) -> EvolveRequest:
    """Returns what was asked for."""
    named = {**settings, "task": settings.get("task", EvolveSettings.DEFAULT_TASK)}
    named["steps"] = settings.get("generations", settings.get("steps"))
    asked = choices.train_request(named, method, words=words, task_words=task_words, resume=resume)
    own = {name: settings.get(name) for name in ("population", "optimizer", "learning_rate")}
    return EvolveRequest(**{**vars(asked), "task": settings.get("task"), **own})
