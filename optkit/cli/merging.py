"""``optkit merge``: weights of several checkpoints of ``optkit train`` made one, and judged."""

from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import typer

import optkit
from optkit.cli.console import say
from optkit.cli.errors import CommandError, message_of
from optkit.cli.tasks import make_task
from optkit.cli.training import load_run, saved_steps
from optkit.transforms.schedule_free import evaluation_params
from optkit.tree import leaves_with_paths

__all__ = ["merge_runs"]

_KINDS = ("uniform", "linear", "ema")


def _chosen(word: str) -> list[tuple[Path, int]]:
    """Returns the checkpoints of ``RUN``, its newest, ``RUN@STEP`` or ``RUN@all``."""
    name, _, which = word.rpartition("@") if "@" in word else (word, "", "")
    steps = saved_steps(Path(name))
    if not steps:
        raise CommandError(f"{name} holds no complete checkpoint of `optkit train`")
    if not which:
        return [(Path(name), steps[-1])]
    if which == "all":
        return [(Path(name), step) for step in steps]
    if which not in map(str, steps):
        known = ", ".join(map(str, steps))
        raise CommandError(f"{name} holds no checkpoint of step {which}; it has {known} (or @all)")
    return [(Path(name), int(which))]


def _weights(text: str, scores: list[float]) -> tuple[float, ...]:
    """Returns merge weights from a kind, "loss", or numbers."""
    try:
        if text in _KINDS:
            kind: Any = text
            return optkit.merge_weights(len(scores), kind)
        if text == "loss":
            return optkit.metric_merge_weights(scores)
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        known = ", ".join((*_KINDS, "loss"))
        raise CommandError(
            f"--weights {text}: give {known}, or a number for each checkpoint, like 0.3,0.7 "
            f"({message_of(error)})"
        ) from error


def merge_runs(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN[@STEP|@all]...", help="Directories of `optkit train`."),
    ],
    weights: Annotated[
        str, typer.Option(help="uniform, linear, ema, loss, or numbers like 0.3,0.7.")
    ] = "uniform",
    out: Annotated[Path, typer.Option(help="An .npz file: parameters by path.")] = Path(
        "merged.npz"
    ),
) -> None:
    """Merge checkpoints of training runs, and evaluate each of them and the merge."""
    if out.suffix != ".npz":
        raise CommandError(f"--out {out} must end in .npz")
    chosen = [checkpoint for word in runs for checkpoint in _chosen(word)]
    trees, tasks = [], []
    for directory, step in chosen:
        params, state, record = load_run(directory, step=step)
        trees.append(evaluation_params(state, params))
        tasks.append((record["task"], record["task_options"]))
    if any(task != tasks[0] for task in tasks):
        raise CommandError("the runs are of different tasks: merge checkpoints of one model")
    task = make_task(*tasks[0])
    scores = [float(task.evaluate(tree)[task.metric]) for tree in trees]
    shares = _weights(weights, scores)
    try:
        merged = optkit.merge_checkpoints(trees, shares)
    except ValueError as error:
        raise CommandError(message_of(error)) from error
    for (directory, step), share, score in zip(chosen, shares, scores, strict=True):
        say(f"{directory} step {step}: weight {share:.4g}, held-out {task.metric} {score:.4f}")
    out.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {path: jax.device_get(x) for path, x in leaves_with_paths(merged)}
    np.savez(out, **arrays)
    score = float(task.evaluate(merged)[task.metric])
    say(f"wrote {out}: held-out {task.metric} {score:.4f}")
