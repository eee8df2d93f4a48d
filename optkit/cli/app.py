"""The commands: they read words, call the library and print what it says."""

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

import optkit
import optkit.catalogue
from optkit.cli import choices
from optkit.cli.checking import check_app
from optkit.cli.console import make_console, say
from optkit.cli.errors import STOPPED, CommandError, require_extra, suggestion
from optkit.cli.evolve import evolve_method
from optkit.cli.hyperparameters import composition, find_entry, find_recipe, resolved
from optkit.cli.merging import merge_runs
from optkit.cli.options import (
    Config,
    Cycles,
    Decay,
    Diagnose,
    EvalEvery,
    Final,
    Keep,
    LogEvery,
    Method,
    Out,
    Overwrite,
    Params,
    SaveEvery,
    Schedule,
    Seconds,
    Seed,
    Seeds,
    Steps,
    TaskName,
    TaskOptions,
    TensorBoardDir,
    Warmup,
)
from optkit.cli.parsing import MethodSpec, load_config, parse_seeds
from optkit.cli.preflight import preflight_method
from optkit.cli.privacy import privacy_of_run
from optkit.cli.progress import RaceProgress, TrainProgress
from optkit.cli.racing import RaceSettings, race
from optkit.cli.report import RaceReport, check_free, write_diagnostics, write_report
from optkit.cli.running import prepare, versions
from optkit.cli.schedule_commands import schedule_app
from optkit.cli.tables import method_table, method_text, result_table
from optkit.cli.tasks import make_task
from optkit.cli.tensorboard import TensorBoard
from optkit.cli.training import train
from optkit.cli.values import plain
from optkit.tasks import Task

__all__ = ["app", "run"]

app = typer.Typer(
    name="optkit",
    help="Matrix-aware, memory-lean optimizers for JAX: look them up, train with them, race them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and return its exit code; a user's mistake becomes one line.

    Args:
      arguments: the words after ``optkit``, or None for those of the process.

    Returns:
      The exit code.
    """
    try:
        app(None if arguments is None else list(arguments), prog_name="optkit")
    except CommandError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return STOPPED
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.")
    ] = False,
) -> None:
    if version:
        print(optkit.__version__)
        raise typer.Exit


@app.command("list")
def list_methods(
    pattern: Annotated[
        str, typer.Argument(help="Part of a name, or a pattern such as 'cautious_*'.")
    ] = "*",
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only methods with this tag.")] = None,
    kind: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(get_args(optkit.catalogue.Kind))}.")
    ] = None,
) -> None:
    """List the catalogued methods."""
    everything = optkit.catalogue.entries()
    _known("family", family, {entry.family for entry in everything})
    _known("tag", tag, {word for entry in everything for word in entry.tags})
    _known("kind", kind, {entry.kind for entry in everything})
    wildcard = pattern if any(char in pattern for char in "*?[") else f"*{pattern}*"
    found = optkit.catalogue.entries(wildcard, family=family, tag=tag, kind=kind)
    if not found:
        names = [entry.name for entry in everything]
        raise CommandError(f"no method matches {pattern!r} here{suggestion(pattern, names)}")
    console = make_console()
    console.print(method_table(found, width=console.width))


def _known(option: str, value: str | None, known: set[str]) -> None:
    """Raises if `value` is not one of the known ones."""
    if value is not None and value not in known:
        words = ", ".join(sorted(known))
        raise CommandError(f"unknown {option} {value!r}{suggestion(value, known)}; known: {words}")


@app.command("show")
def show_method(method: Method) -> None:
    """Show one method: its chain, recursion, evidence, hyperparameters, paper and memory."""
    composed = composition(method)
    if composed:
        say(composed)
        return
    console = make_console()
    console.print(method_text(find_entry(method), width=console.width))


@app.command("plan")
def plan_method(
    method: Method,
    task: TaskName = None,
    param: Params = None,
    task_option: TaskOptions = None,
    config: Config = None,
) -> None:
    """Print what a method does with each parameter of a task's model, and the bytes it keeps."""
    settings = choices.overlay(load_config(config), task=task)
    made = make_task(
        settings.get("task", choices.DEFAULT_TASK), choices.task_options(settings, task_option)
    )
    given = choices.hyperparameters(settings, method, param) or {}
    prepared = prepare(made, find_recipe(method), given)
    print(optkit.plan(prepared.tx, prepared.abstract_params))


@app.command("train")
def train_method(
    method: Method,
    task: TaskName = None,
    steps: Steps = None,
    seed: Seed = None,
    param: Params = None,
    config: Config = None,
    task_option: TaskOptions = None,
    schedule: Schedule = None,
    warmup: Warmup = None,
    final: Final = None,
    decay: Decay = None,
    cycles: Cycles = None,
    out: Out = None,
    checkpoint_every: SaveEvery = None,
    keep: Keep = None,
    log_every: LogEvery = None,
    eval_every: EvalEvery = None,
    diagnose: Diagnose = None,
    tensorboard: TensorBoardDir = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last save.")] = False,
) -> None:
    """Train one method on a task, with a log and checkpoints; --resume continues bit for bit."""
    settings = choices.overlay(
        load_config(config),
        **{"task": task, "steps": steps, "seed": seed, "out": out, "log_every": log_every},
        **{"eval_every": eval_every, "checkpoint_every": checkpoint_every, "diagnose": diagnose},
        **{"schedule": schedule, "warmup": warmup, "final": final},
        **{"decay": decay, "cycles": cycles, "keep": keep},
    )
    request = choices.train_request(
        settings, method, words=param, task_words=task_option, resume=resume
    )
    with TrainProgress(make_console()) as progress, TensorBoard(tensorboard) as board:

        def show(row: dict[str, Any]) -> None:
            progress.row(row)
            board.row(row)

        outcome = train(request, on_start=progress.start, on_row=show)
    if outcome.settings.diagnose is not None and importlib.util.find_spec("matplotlib"):
        title = f"optkit train {method} on {outcome.settings.task}"
        write_diagnostics(outcome.rows, title, request.out / "diagnostics.html")
    done = f"step {outcome.step} of {outcome.settings.steps}, log and checkpoints in {request.out}"
    if outcome.stopped:
        say(f"stopped at {done}; --resume goes on")
        raise typer.Exit(STOPPED)
    idle = outcome.started_at == outcome.step
    say(f"nothing left to do: the run is at {done}" if idle else f"done: {done}")


app.command("evolve")(evolve_method)
app.command("preflight")(preflight_method)
app.command("merge")(merge_runs)
app.command("privacy")(privacy_of_run)
app.add_typer(check_app)
app.add_typer(schedule_app, name="schedule")


@app.command("race")
def race_methods(
    methods: Annotated[
        list[str] | None, typer.Argument(metavar="METHOD[:NAME=VALUE,...]...", help="The entrants.")
    ] = None,
    task: TaskName = None,
    steps: Steps = None,
    seeds: Seeds = None,
    seconds: Seconds = None,
    out: Out = None,
    overwrite: Overwrite = False,
    config: Config = None,
    task_option: TaskOptions = None,
    schedule: Schedule = None,
    warmup: Warmup = None,
    final: Final = None,
    decay: Decay = None,
    cycles: Cycles = None,
    eval_every: EvalEvery = None,
    diagnose: Diagnose = None,
) -> None:
    """Race methods over several seeds; writes report.html, report.png and results.json."""
    settings = choices.overlay(
        load_config(config),
        **{"task": task, "steps": steps, "seconds": seconds, "out": out, "eval_every": eval_every},
        **{"schedule": schedule, "warmup": warmup, "final": final},
        **{"decay": decay, "cycles": cycles},
        seeds=None if seeds is None else parse_seeds(seeds),
        diagnose=diagnose,
    )
    # Found out now rather than after minutes of training.
    require_extra(["matplotlib"], purpose="a race report")
    name = settings.get("task", choices.DEFAULT_TASK)
    directory = Path(settings.get("out", f"race-{name}"))
    check_free(directory, overwrite=overwrite)
    options = choices.task_options(settings, task_option)
    specs = choices.entrants(settings, methods)
    made = make_task(name, options)
    plan = choices.race_settings(settings, specs, made.default_steps)
    console = make_console()
    report = _run_race(console, made, plan, options)
    _print_outcome(console, report)
    files = write_report(report, directory)
    say("wrote " + ", ".join(str(path) for path in files))
    if report.interrupted:
        raise typer.Exit(STOPPED)


def _run_race(
    console: Console, task: Task, plan: RaceSettings, options: dict[str, Any]
) -> RaceReport:
    """Runs a race under its progress bars and returns what there is to report."""
    labels = [spec.label for spec in plan.entrants]
    bars = RaceProgress(
        console, labels=labels, metric=task.metric, steps=plan.steps, seconds=plan.seconds
    )
    with bars:
        runs, stopped = race(task, plan, bars)
    if not any(run.step for run in runs):
        raise CommandError("stopped before the first step: nothing to report", exit_code=STOPPED)
    about: dict[str, Any] = {
        "name": task.name,
        "description": task.description,
        "metric": task.metric,
        "options": plain(options),
        "parameters": task.parameters,
    }
    setup: dict[str, Any] = {
        "steps": plan.steps,
        "seconds": plan.seconds,
        "seeds": list(plan.seeds),
        "eval_every": plan.eval_every,
        "schedule": dataclasses.asdict(plan.schedule),
        "diagnose": plan.diagnose,
        "measures": list(plan.measures),
        "methods": {spec.label: _shown(spec) for spec in plan.entrants},
    }
    return RaceReport(about, setup, versions(), runs, task.metric, stopped)


def _shown(spec: MethodSpec) -> dict[str, Any]:
    """Returns every hyperparameter of an entrant with the value in force."""
    return resolved(find_recipe(spec.name), spec.hyperparameters)


def _print_outcome(console: Console, report: RaceReport) -> None:
    """Print table and verdicts of a race."""
    comparison = report.comparison
    console.print(result_table(comparison))
    console.print("★ best by more than the spread over seeds   ☆ best, but not by more than that")
    if report.timing:
        say(report.timing)
    say(comparison.by_steps.text)
    say(comparison.by_seconds.text)
    if report.interrupted:
        say("stopped by Ctrl-C: this compares what had run")
