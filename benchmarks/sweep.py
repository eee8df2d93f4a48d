"""Finds a learning rate for each method of the demo: ``python -m benchmarks.sweep [METHOD ...]``.

Each method gets the same search over one number, its learning rate: a few points of a decade grid
around a start, then further points as long as the best one is at an edge. What a method leaves to
AdamW (embeddings, norms) takes the rate found for AdamW. Every finished point is saved at once to
``--results``, so that an interrupted sweep goes on where it stopped, and a later one with more
methods or points reuses them (delete the file when a method has changed). The rates found are
written as a configuration for ``optkit race``.

The seed is none of the demo's, so that no method is tuned to the run that is shown.
"""

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

import optkit
from optkit import tasks

HERE = Path(__file__).resolve().parent
# Digits of a grid with so many points per decade.
SERIES = {1: (1,), 2: (1, 3), 3: (1, 2, 5)}
MAX_POINTS = 9


@dataclasses.dataclass(frozen=True)
class Search:
    """Where the search of one method starts, and which values it takes from another method."""

    start: float
    tied: Mapping[str, str] = dataclasses.field(default_factory=dict)


_ADAM = {"adam_learning_rate": "adamw"}
SEARCHES = {
    "adamw": Search(3e-3),
    "lion": Search(3e-4),
    "muon": Search(2e-2, _ADAM),
    "cautious_adamw": Search(3e-3),
    "cautious_lion": Search(3e-4),
    "cautious_muon": Search(2e-2, _ADAM),
    "cwd_adamw": Search(3e-3),
    "cwd_lion": Search(3e-4),
    "grams": Search(3e-3),
    "muon_rms": Search(3e-3),
    "muon_dion": Search(2e-2),
    "signsgd": Search(3e-4),
    "signum": Search(3e-4),
}
DEMO = ("adamw", "lion", "muon", "cautious_adamw")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all points of a sweep share."""

    task: str
    task_options: dict[str, Any]
    steps: int
    seed: int

    def key(self, method: str, values: Mapping[str, float]) -> str:
        """Returns the name of a point in the file of results."""
        return json.dumps([method, values, dataclasses.asdict(self)], sort_keys=True)


def grid_value(index: int, per_decade: int) -> float:
    """Returns the grid's value at an index; index 0 is 1.

    Example:
      >>> [grid_value(i, 2) for i in (-5, -4, 1)]
      [0.003, 0.01, 3.0]
    """
    decade, place = divmod(index, per_decade)
    return float(f"{SERIES[per_decade][place]}e{decade}")


def grid_index(value: float, per_decade: int) -> int:
    """Returns the index whose value is closest on a logarithmic scale."""
    guess = round(math.log10(value) * per_decade)
    near = range(guess - 2, guess + 3)
    return min(near, key=lambda i: abs(math.log(grid_value(i, per_decade) / value)))


class Results:
    """The finished points, in a JSON file that is rewritten after each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.points: dict[str, dict[str, Any]] = {}
        if path.exists():
            for point in json.loads(path.read_text(encoding="utf-8"))["points"]:
                self.points[self._key(point)] = point

    @staticmethod
    def _key(point: Mapping[str, Any]) -> str:
        setting = Setting(*(point[field.name] for field in dataclasses.fields(Setting)))
        return setting.key(point["method"], point["values"])

    def add(self, point: dict[str, Any]) -> None:
        """Saves a point; a reader or a resumed sweep never sees half a file."""
        self.points[self._key(point)] = point
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        lines = ",\n".join(json.dumps(p, sort_keys=True) for p in self.points.values())
        fresh.write_text(f'{{"points": [\n{lines}\n]}}\n', encoding="utf-8")
        fresh.replace(self.path)


class Runner:
    """Trains one method; the rates are in the state, so that it compiles once for all points."""

    def __init__(self, task: tasks.Task, setting: Setting, method: str) -> None:
        self.task, self.setting, self.method = task, setting, method
        self.tx: Any = None

    def __call__(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Returns the point that these values give."""
        if self.tx is None:
            factory = optkit.catalogue.get(self.method).factory
            self.tx = optax.inject_hyperparams(factory)(**values)
            self.step = tasks.train_step(self.task, self.tx)
        begin = time.perf_counter()
        state, params = tasks.start(self.task, self.tx, self.setting.seed)
        for name, value in values.items():
            state.hyperparams[name] = jax.numpy.asarray(value, jax.numpy.float32)
        losses = []
        for index in range(self.setting.steps):
            batch = self.task.batch(self.setting.seed, index)
            state, params, metrics = self.step(batch, state, params)
            losses.append(metrics["loss"])
        last = losses[-max(1, len(losses) // 10) :]
        held_out = self.task.evaluate(params)[self.task.metric]
        return {
            **dataclasses.asdict(self.setting),
            "method": self.method,
            "values": dict(values),
            "metric": self.task.metric,
            # JSON has no NaN: a point that diverged has no result.
            "held_out": held_out if math.isfinite(held_out) else None,
            "train_loss": _finite(float(np.mean(jax.device_get(last)))),
            "seconds": round(time.perf_counter() - begin, 1),
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def score(point: Mapping[str, Any]) -> float:
    """Returns the held-out metric, infinite for a point that diverged."""
    return math.inf if point["held_out"] is None else point["held_out"]


def search(runner: Runner, results: Results, tied: Mapping[str, float], args: Any) -> dict:
    """Returns the best point of a method, with ``at_edge`` set if the grid ended there."""
    centre = grid_index(SEARCHES[runner.method].start, args.per_decade)
    wanted = list(range(centre - args.around, centre + args.around + 1))
    done: dict[int, dict[str, Any]] = {}
    while wanted:
        for index in wanted:
            values = {"learning_rate": grid_value(index, args.per_decade), **tied}
            known = results.points.get(runner.setting.key(runner.method, values))
            if known is None:
                results.add(known := runner(values))
            done[index] = known
            print(f"{runner.method:16} {values} {known['metric']} {score(known):.4f}", flush=True)
        best = min(done, key=lambda index: score(done[index]))
        edges = {min(done): min(done) - 1, max(done): max(done) + 1}
        wanted = [edges[best]] if best in edges and len(done) < MAX_POINTS else []
    return {**done[best], "at_edge": best in (min(done), max(done))}


def sweep(methods: Iterable[str], task: tasks.Task, setting: Setting, args: Any) -> dict[str, dict]:
    """Returns the best point of each method, those that others depend on included."""
    results, best = Results(args.results), {}
    queue = list(methods)
    while queue:
        method = queue.pop(0)
        needed = [m for m in SEARCHES[method].tied.values() if m not in best]
        if needed:
            queue = [*needed, method, *(m for m in queue if m not in needed)]
            continue
        ties = {n: best[m]["values"]["learning_rate"] for n, m in SEARCHES[method].tied.items()}
        best[method] = search(Runner(task, setting, method), results, ties, args)
    return best


def configuration(best: Mapping[str, dict], setting: Setting, args: Any) -> str:
    """Returns the text of a configuration that ``optkit race --config`` reads."""
    lines = [
        "# Written by `python -m benchmarks.sweep`: the learning rate of each method with the best",
        f"# held-out result after {setting.steps} steps of seed {setting.seed}, which is no seed of"
        " the race.",
        f'task = "{setting.task}"',
        f"steps = {args.demo_steps}",
        f"seeds = {json.dumps([int(seed) for seed in args.demo_seeds.split(',')])}",
        f"eval_every = {max(1, args.demo_steps // 10)}",
    ]
    if setting.task_options:
        lines += ["", "[task_options]"]
        lines += [f"{name} = {json.dumps(value)}" for name, value in setting.task_options.items()]
    for method, point in best.items():
        edge = ", at the edge of the grid" if point["at_edge"] else ""
        lines += ["", f"[methods.{method}]  # {point['metric']} {score(point):.3f}{edge}"]
        lines += [f"{name} = {value!r}" for name, value in sorted(point["values"].items())]
    return "\n".join(lines) + "\n"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("methods", nargs="*", help=f"of {', '.join(SEARCHES)}")
    parser.add_argument("--task", default="bytelm")
    parser.add_argument("--task-option", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--steps", type=int, default=200, help="of each point")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--around", type=int, default=2, help="points on each side of the start")
    parser.add_argument("--per-decade", type=int, default=2, choices=SERIES)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "sweep.json")
    parser.add_argument("--config", type=Path, default=HERE / "demo.toml", help="file to write")
    parser.add_argument("--demo-steps", type=int, default=200)
    parser.add_argument("--demo-seeds", default="0,1")
    args = parser.parse_args(arguments)
    unknown = [method for method in args.methods if method not in SEARCHES]
    if unknown:
        parser.error(f"no search for {', '.join(unknown)}; there is one for {', '.join(SEARCHES)}")
    args.methods = args.methods or list(DEMO)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Runs the sweep and writes results and configuration."""
    args = parse(arguments)
    options = {}
    for word in args.task_option:
        name, _, value = word.partition("=")
        options[name] = json.loads(value)
    setting = Setting(args.task, options, args.steps, args.seed)
    task = tasks.get(args.task, **options)
    best = sweep(args.methods, task, setting, args)
    args.config.parent.mkdir(parents=True, exist_ok=True)
    args.config.write_text(configuration(best, setting, args), encoding="utf-8")
    print(f"wrote {args.config}\n{args.config.read_text(encoding='utf-8')}")


if __name__ == "__main__":
    main()
