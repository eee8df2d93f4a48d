"""The options that several commands share, each with its help."""

from pathlib import Path
from typing import Annotated

import typer

from optkit.cli.choices import DEFAULT_TASK
from optkit.cli.measuring import EVERY

__all__ = [
    "Config",
    "Cycles",
    "Decay",
    "Diagnose",
    "EvalEvery",
    "Final",
    "Keep",
    "LogEvery",
    "Method",
    "Out",
    "Overwrite",
    "Params",
    "SaveEvery",
    "Schedule",
    "Seconds",
    "Seed",
    "Seeds",
    "Steps",
    "TaskName",
    "TaskOptions",
    "TensorBoardDir",
    "Warmup",
]

Method = Annotated[str, typer.Argument(help="A method of the catalogue (see `optkit list`).")]
Params = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="A hyperparameter; may be repeated."),
]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", metavar="NAME=VALUE", help="Of the task; may be repeated."),
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="A .toml or .json file; the command line overrules it."),
]
Diagnose = Annotated[
    str | None,
    typer.Option(
        metavar="[STEPS][,spectra][,attention]",
        help="Steps from one measurement of sizes and top singular values to the next; on the "
        "clock. `spectra` adds all singular values, on the clock too; `attention` entropies and "
        f"largest logits on held-out examples, off it. Without STEPS every {EVERY}.",
        show_default="none",
    ),
]
TensorBoardDir = Annotated[
    Path | None, typer.Option("--tensorboard", help="Directory for event files of TensorBoard.")
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace the files of an earlier race in --out.")
]
Out = Annotated[Path | None, typer.Option(help="Directory to write to.")]
TaskName = Annotated[str | None, typer.Option(help="A built-in task.", show_default=DEFAULT_TASK)]
Steps = Annotated[int | None, typer.Option(min=1, help="Steps of a run.", show_default="task's")]
EvalEvery = Annotated[
    int | None, typer.Option(min=1, help="Steps between evaluations.", show_default="a tenth")
]
SaveEvery = Annotated[
    int | None, typer.Option(min=1, help="Steps between checkpoints.", show_default="a tenth")
]
Keep = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Checkpoints that stay, the newest; `optkit merge` reads them.",
        show_default="2",
    ),
]
LogEvery = Annotated[
    int | None, typer.Option(min=1, help="Steps between rows of the log.", show_default="1")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Of parameters and batches.", show_default="0")
]
Seeds = Annotated[str | None, typer.Option(help="Seeds, like 0,1.", show_default="0,1")]
Schedule = Annotated[
    str | None,
    typer.Option(
        help="Course of the learning rates: constant, linear, cosine, inverse_sqrt, wsd, wsd_s or "
        "a file NAME.json (see `optkit schedule`); what -p gives is the peak, whatever peak a file "
        "was saved with.",
        show_default="constant",
    ),
]
Warmup = Annotated[
    int | None,
    typer.Option(min=0, help="Steps in which the rates first rise.", show_default="0"),
]
Final = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Share of the peak at the end (linear, cosine, wsd, wsd_s); wsd and wsd_s fall "
        "linearly to 0, and inversely to a share above 0 as optkit.schedules.wsd does.",
        show_default="0",
    ),
]
Decay = Annotated[
    float | None,
    typer.Option(
        min=0.0, help="The fall of wsd: share of the run, or steps above 1.", show_default="0.1"
    ),
]
Cycles = Annotated[int | None, typer.Option(min=1, help="Cycles of wsd_s.", show_default="1")]
Seconds = Annotated[
    float | None, typer.Option(min=0.01, help="Training seconds after which each run ends.")
]
