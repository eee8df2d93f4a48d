"""Live progress: one bar a run on a terminal, one line an evaluation elsewhere."""

from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from optkit.cli.racing import Run
from optkit.cli.settings import TrainSettings

__all__ = ["EvolveProgress", "RaceProgress", "TrainProgress"]


def _bars(console: Console, *columns: ProgressColumn) -> Progress:
    """Returns bars that draw only when told to, so that it never falls on a training clock."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}", markup=False),
        *columns,
        console=console,
        auto_refresh=False,
        disable=not console.is_terminal,
    )


class TrainProgress:
    """The bar of one training run.

    Args:
      console: where to draw.
    """

    STEP = "step"

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = _bars(console, TimeRemainingColumn())
        self._id: TaskID | None = None
        self._held_out = ""
        self._label = ""

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, settings: TrainSettings, step: int) -> None:
        """Begins the bar at a step."""
        self._label = f"{settings.method} on {settings.task}"
        self._id = self._bars.add_task(
            self._label, total=settings.steps, completed=step, figures="compiling"
        )
        self._bars.refresh()

    def row(self, row: dict[str, Any]) -> None:
        """Shows one row of the log."""
        if "held_out" in row:
            self._held_out = self._scores(row["held_out"])
        figures = f"{self._figures(row)}  {self._held_out}"
        if self._id is not None:
            self._bars.update(self._id, completed=row["step"], figures=figures)
            self._bars.refresh()
        if "held_out" in row and not self._console.is_terminal:
            line = f"{self._label}  {self.STEP} {row['step']}  {figures}"
            self._console.print(Text(line), soft_wrap=True)

    def _scores(self, held_out: dict[str, float]) -> str:
        """Says in short how good the model is."""
        return "held-out " + ", ".join(f"{name} {value:.4f}" for name, value in held_out.items())

    def _figures(self, row: dict[str, Any]) -> str:
        """Says in short how training goes."""
        return f"train loss {row['loss']:.4f}"


class EvolveProgress(TrainProgress):
    """The bar of one run of a population, with its fitnesses and how fast they are measured.

    Args:
      console: where to draw.
    """

    STEP = "generation"

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._before = (0.0, 0.0)

    def row(self, row: dict[str, Any]) -> None:
        """Shows one row of the log."""
        super().row(row)
        self._before = (row["evaluations"], row["seconds"])

    def _scores(self, held_out: dict[str, float]) -> str:
        name, value = next(iter(held_out.items()))
        return f"unperturbed {name} {value:.4g}"

    def _figures(self, row: dict[str, Any]) -> str:
        evaluations, seconds = self._before
        passed = row["seconds"] - seconds
        rate = (row["evaluations"] - evaluations) / passed if passed > 0 else 0.0
        spread = f"  sigma {row['sigma']:.4g}" if "sigma" in row else ""
        fitness = f"fitness best {row['fitness_best']:.4g}  mean {row['fitness_mean']:.4g}"
        return f"{fitness}{spread}  {rate:.0f} evaluations/s"


class RaceProgress:
    """The bars of a race, one a run; serves as the race's observer.

    Args:
      console: where to draw.
      labels: the entrants.
      metric: name of the held-out metric.
      steps: limit of steps, or None.
      seconds: limit of training seconds, or None.
    """

    def __init__(
        self,
        console: Console,
        *,
        labels: Sequence[str],
        metric: str,
        steps: int | None,
        seconds: float | None,
    ) -> None:
        self._console = console
        # No estimate of the time left: it would take the turns of the others for slowness.
        self._bars = _bars(console)
        self._width = max(len(label) for label in labels)
        self._metric = metric
        self._limits = steps, seconds
        self._ids: dict[tuple[str, int], TaskID] = {}
        self._shown: dict[tuple[str, int], tuple[int, str]] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def compiling(self, label: str) -> None:
        """Says that an entrant is being compiled."""
        self._console.print(Text(f"compiling {label}", style="dim"), soft_wrap=True)
        self._bars.refresh()

    def entered(self, run: Run) -> None:
        """Adds the bar of a run."""
        name = f"{run.label:{self._width}} seed {run.seed}"
        self._ids[run.label, run.seed] = self._bars.add_task(name, total=1.0, figures="ready")
        self._bars.refresh()

    def moved(self, run: Run) -> None:
        """Shows where a run is."""
        steps, seconds = self._limits
        shares = [run.step / steps] if steps else []
        shares += [run.seconds / seconds] if seconds else []
        loss = f"train loss {run.losses[-1][2]:.4f}" if run.losses else ""
        last = run.held_out[-1]
        held_out = f"held-out {self._metric} {last[self._metric]:.4f}"
        figures = f"{run.status:8} step {run.step:5d}  {loss}  {held_out}"
        done = 1.0 if run.status in ("finished", "diverged") else max(shares, default=0.0)
        self._bars.update(self._ids[run.label, run.seed], completed=done, figures=figures)
        self._bars.refresh()
        key, state = (run.label, run.seed), (int(last["step"]), run.status)
        if self._console.is_terminal or self._shown.get(key) == state:
            return
        if last["step"] == run.step or run.status == "diverged":
            self._shown[key] = state
            line = f"{run.label:{self._width}} seed {run.seed}  {figures}"
            self._console.print(Text(line), soft_wrap=True)
