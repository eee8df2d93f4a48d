"""``optkit schedule``: draw the courses of learning rates, and refine one from a run's log."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from optkit import schedules
from optkit.cli.chart import drawing, picture
from optkit.cli.console import say
from optkit.cli.errors import CommandError, message_of, require_extra
from optkit.cli.logs import read_log, write_text
from optkit.cli.parsing import parse_method
from optkit.cli.report import document
from optkit.cli.results import Curve, Panel
from optkit.cli.schedules import KEYS, read_schedule
from optkit.cli.training import LOG_NAME

__all__ = ["schedule_app"]

schedule_app = typer.Typer(
    help="Draw courses of the learning rate, or refine one from a run's log.", no_args_is_help=True
)
_NORMS = {"adam": "gradient_norm_l1", "sgd": "gradient_norm"}
_KEYS = {*KEYS} - {"schedule"}


def _read(word: str, steps: int) -> schedules.Schedule:
    """Returns the schedule of ``KIND[:name=value,...]`` or ``FILE.json``, with a peak of 1."""
    if word.endswith(".json"):
        course = read_schedule({"schedule": word})
    else:
        spec = parse_method(word)
        unknown = sorted({*spec.hyperparameters} - _KEYS)
        if unknown:
            known = ", ".join(sorted(_KEYS))
            raise CommandError(f"{word}: schedules have no {unknown[0]!r}; known: {known}")
        course = read_schedule({"schedule": spec.name, **spec.hyperparameters})
    assert course is not None  # a schedule was named
    return course.unit(steps)


def _curve(word: str, rate: schedules.Schedule, steps: int) -> Curve:
    end = rate.steps if word.endswith(".json") and rate.steps else steps
    at, values = rate.points(end=end)
    drawn = [float(value) for value in values]
    return Curve(label=word, x=[float(t) for t in at], mean=drawn, low=drawn, high=drawn)


@schedule_app.command("plot")
def plot(
    words: Annotated[
        list[str], typer.Argument(metavar="KIND[:NAME=VALUE,...]|FILE.json...", help="The courses.")
    ],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the run.")] = 1000,
    out: Annotated[Path, typer.Option(help="A .png, .svg or .html file.")] = Path("schedules.html"),
) -> None:
    """Draw schedules as shares of the peak over the steps of a run."""
    if out.suffix not in (".png", ".svg", ".html"):
        raise CommandError(f"--out {out} must end in .png, .svg or .html")
    require_extra(["matplotlib"], purpose="a picture")
    curves = tuple(_curve(word, _read(word, steps), steps) for word in words)
    panel = Panel("Learning rates", "steps", "share of the peak", curves, None)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".png":
        picture([panel], out, caption=[])
    else:
        drawn = drawing([panel])
        write_text(out, drawn if out.suffix == ".svg" else document("Learning rates", drawn))
    say(f"wrote {out}")


def _norms(log: Path, key: str) -> np.ndarray:
    """Returns the norms of all steps of a log, NaN where it has none, which refinement skips."""
    if not log.is_file():
        raise CommandError(
            f"{log} is no log: give the log.jsonl of `optkit train` or its directory"
        )
    try:
        rows = [row for row in read_log(log) if row["step"] and key in row]
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(f"{log}: no log of `optkit train` ({message_of(error)})") from error
    if len(rows) < 2:
        raise CommandError(f"{log} has {len(rows)} rows with {key}; a schedule needs at least 2")
    at = [row["step"] - 1 for row in rows]
    norms = np.full(at[-1] + 1, np.nan)
    norms[at] = np.array([row[key] for row in rows], np.float64)  # null, for what is infinite: NaN
    return norms


@schedule_app.command("refine")
def refine(
    log: Annotated[Path, typer.Argument(help="The log.jsonl of `optkit train`, or its directory.")],
    kind: Annotated[
        str, typer.Option(help="adam (L1 norms of gradients) or sgd (L2 norms).")
    ] = "adam",
    smooth: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="The median filter's share of the run.")
    ] = 0.1,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("schedule.json"),
) -> None:
    """Refine the schedule of a run from its gradient norms; train --schedule FILE takes it."""
    if kind not in _NORMS:
        raise CommandError(f"unknown kind {kind!r}; known: {', '.join(_NORMS)}")
    norms = _norms(log / LOG_NAME if log.is_dir() else log, _NORMS[kind])
    options: dict[str, Any] = {"kind": kind, "smooth": smooth}
    try:
        rate = schedules.refined(1.0, norms, **options)
    except ValueError as error:
        raise CommandError(f"{log}: {message_of(error)}") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    schedules.save(rate, out)
    say(f"wrote {out}: {rate.steps} steps; `optkit train --schedule {out}` follows it")
