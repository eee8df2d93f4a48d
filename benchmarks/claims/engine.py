"""What the experiments share: one compiled training run a method, tables, stored results."""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import table, versions
from optkit import tasks
from optkit.tasks.bytelm import windows
from optkit.tasks.corpus import standard_library
from optkit.transforms.schedule_free import evaluation_params

Batch = Any
Params = Any
Build = Callable[[Any], optax.GradientTransformation]
SEARCH = (1000,)  # seed of every search for a learning rate
MOST_EXTENSIONS = 4

Probe = Callable[[Any, Params], dict[str, jax.Array]]
Extras = Callable[[Params, Batch], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A learning problem as arrays: what a compiled scan over steps needs.

    Attributes:
      init: key -> parameters.
      loss: (parameters, batch) -> scalar.
      batches: (seed, steps) -> batches on a leading axis.
      held_out: the batch that is never trained on.
    """

    init: Callable[[jax.Array], Params]
    loss: Callable[[Params, Batch], jax.Array]
    batches: Callable[[int, int], Batch]
    held_out: Batch


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
      claim: the headline, as a sentence that can be false.
      holds: whether the table bears it out.
      finding: what was measured, in a sentence.
      header: columns of the table.
      rows: its rows.
      seeds: the seeds of the runs that the table is made of.
    """

    claim: str
    holds: bool
    finding: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        verdict = "HOLDS here" if self.holds else "does NOT hold here"
        return f"{table(self.header, self.rows)}\nclaim: {self.claim}\n{verdict}: {self.finding}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """How much an experiment does.

    Attributes:
      seeds: of the reported runs.
      quick: tiny sizes that show that it runs and nothing else.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False

    def pick(self, full: Any, quick: Any) -> Any:
        """Returns the size for this setting."""
        return quick if self.quick else full


def language_model(width: int = 64, context: int = 64, batch: int = 16, layers: int = 2) -> Problem:
    """Returns the byte language model on Python's standard library as a ``Problem``."""
    task = tasks.get("bytelm", width=width, context=context, batch=batch, layers=layers)
    held_out = standard_library().held_out
    starts = np.linspace(0, held_out.size - context - 1, 96).astype(np.int64)

    def batches(seed: int, steps: int) -> Batch:
        drawn = [task.batch(seed, step) for step in range(steps)]
        return jax.tree.map(lambda *parts: np.stack(parts), *drawn)

    return Problem(
        task.init, lambda p, b: task.loss(p, b)[0], batches, windows(held_out, starts, context)
    )


@dataclasses.dataclass(frozen=True)
class Curves:
    """Runs of one method over rates and seeds.

    Attributes:
      rates: learning rates.
      held_out: (rates, seeds, evaluations) held-out losses; a run that diverged is infinite.
      probes: further values, (rates, seeds, evaluations, ...).
      every: training steps between evaluations.
    """

    rates: tuple[float, ...]
    held_out: np.ndarray
    probes: dict[str, np.ndarray]
    every: int

    @property
    def final(self) -> np.ndarray:
        """Mean over seeds of the last held-out loss, one a rate."""
        return self.held_out[:, :, -1].mean(1)

    @property
    def best(self) -> int:
        """Index of the rate whose final loss is lowest."""
        return int(np.argmin(self.final))

    def steps_to(self, loss: float) -> float:
        """Steps until the mean curve of the best rate is at or below a loss; inf if never."""
        curve = self.held_out[self.best].mean(0)
        reached = np.flatnonzero(curve <= loss)
        return float((reached[0] + 1) * self.every) if reached.size else np.inf


class Trainer:
    """Trains one method at any rate and seed with a single compilation.

    Losses are those of the weights for use: of a schedule-free run, of its average.
    """

    def __init__(
        self,
        problem: Problem,
        build: Build,
        *,
        steps: int,
        evaluations: int = 25,
        probe: Probe | None = None,
        extras: Extras | None = None,
    ) -> None:
        """Prepares a run.

        Args:
          problem: what to learn.
          build: learning rate (a traced scalar) -> transformation.
          steps: training steps, a multiple of ``evaluations``.
          evaluations: evenly spaced evaluations on the held-out batch.
          probe: (state, params) -> further values to record at each evaluation.
          extras: (params, batch) -> extra arguments of update, such as an estimate of curvature.
        """
        self.problem, self.steps, self.every = problem, steps, steps // evaluations

        def one(rate: jax.Array, params: Params, batches: Batch) -> tuple[jax.Array, Any]:
            tx = optax.with_extra_args_support(build(rate))

            def step(carry: Any, batch: Batch) -> tuple[Any, None]:
                state, params = carry
                grads = jax.grad(problem.loss)(params, batch)
                more = extras(params, batch) if extras else {}
                updates, state = tx.update(grads, state, params, **more)
                return (state, optax.apply_updates(params, updates)), None

            def stretch(carry: Any, batches: Batch) -> tuple[Any, Any]:
                (state, params), _ = jax.lax.scan(step, carry, batches)
                extra = probe(state, params) if probe else {}
                judged = evaluation_params(state, params)
                return (state, params), (problem.loss(judged, problem.held_out), extra)

            parts = jax.tree.map(lambda x: x.reshape(evaluations, -1, *x.shape[1:]), batches)
            return jax.lax.scan(stretch, (tx.init(params), params), parts)[1]

        self._run = jax.jit(one)

    def curves(self, rates: Sequence[float], seeds: Sequence[int]) -> Curves:
        """Trains once for every rate and seed."""
        given = [
            (self.problem.init(jax.random.key(seed)), self.problem.batches(seed, self.steps))
            for seed in seeds
        ]
        done = [
            [jax.device_get(self._run(jnp.float32(rate), *arguments)) for arguments in given]
            for rate in rates
        ]
        losses = np.array([[loss for loss, _ in row] for row in done])
        extras = [[extra for _, extra in row] for row in done]
        probes = {
            name: np.array([[extra[name] for extra in row] for row in extras])
            for name in extras[0][0]
        }
        losses = np.where(np.isfinite(losses), losses, np.inf)
        return Curves(tuple(rates), losses, probes, self.every)

    def tuned(self, rates: Sequence[float], setting: Setting) -> Curves:
        """Finds the best rate with a seed of its own and trains the reported seeds with it.

        The grid goes on as long as the best rate is at its edge. The seed of the search is none of
        the reported ones, so that no method is tuned to its test.
        """
        found = {rate: self.curves([rate], SEARCH).final[0] for rate in rates}
        for _ in range(setting.pick(MOST_EXTENSIONS, 0)):
            tried, best = sorted(found), min(found, key=lambda rate: found[rate])
            if best not in (tried[0], tried[-1]):
                break
            # Two or three digits do for a learning rate.
            further = tried[0] ** 2 / tried[1] if best == tried[0] else tried[-1] ** 2 / tried[-2]
            rate = float(f"{further:.2g}")
            found[rate] = self.curves([rate], SEARCH).final[0]
        best = min(found, key=lambda rate: found[rate])
        return self.curves([best], setting.seeds)


def number(value: float, digits: int = 4) -> str:
    """Returns a table cell."""
    return f"{value:.{digits}g}" if np.isfinite(value) else "diverged"


def steps_text(steps: float) -> str:
    """Returns a number of steps as a table cell."""
    return f"{steps:g}" if np.isfinite(steps) else "never"


def spread(values: np.ndarray, never: str = "diverged") -> str:
    """Returns mean and standard deviation over seeds as a table cell."""
    if not np.isfinite(values).all():
        return never
    return f"{values.mean():.4f} +- {values.std(ddof=1) if values.size > 1 else 0.0:.4f}"


def store(name: str, outcome: Outcome, seconds: float, folder: Path) -> Path:
    """Writes an outcome as JSON and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    content = {
        "command": f"python -m benchmarks.claims {name}",
        **dataclasses.asdict(outcome),
        "seconds": round(seconds, 1),
        "versions": versions(),
    }
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file


def run(name: str, experiment: Callable[[Setting], Outcome], setting: Setting, folder: Path) -> str:
    """Runs one experiment, stores it, and returns what to print."""
    started = time.perf_counter()
    outcome = experiment(setting)
    seconds = time.perf_counter() - started
    if not setting.quick:
        store(name, outcome, seconds, folder)
    return f"== {name} ({seconds:.0f} s)\n{outcome}"
