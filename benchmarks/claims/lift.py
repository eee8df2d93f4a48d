"""LIFT: does fine-tuning 5% of the weights learn a new task as well as all, and forget less?

LIFT (arXiv 2506.00772) trains the entries that stand out in a low-rank approximation, and is said
to learn more and to forget less than full fine-tuning. Here: a perceptron of two hidden layers of
128 learns scikit-learn's digits, and then the same digits turned by a quarter; masks of 6% of both
hidden kernels, where biases and head train as ever, or for LIFT are frozen, too. One grid of rates
and Adam's same numbers for all, chosen by the held-out loss of the new task.
"""

from typing import Any

import jax
import numpy as np

import optkit
from benchmarks.claims import streams
from benchmarks.claims.engine import Outcome, Setting, number, spread
from optkit import masks

RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FIRST_RATE, WIDTH, BATCH = 3e-3, 128, 32
NUMBERS = {"b1": 0.9, "b2": 0.95, "eps": 1e-6, "eps_mode": "uncorrected", "weight_decay": 0.0}
RANK, FILTER_RANK, INTERVAL, SHARE = 4, 16, 100, 0.06


def adam(rate: Any) -> Any:
    """What all of them do with the entries that train."""
    return optkit.adamw(rate, **NUMBERS)


METHODS = {
    "all weights": adam,
    "lift": lambda rate: optkit.lift(
        rate, **NUMBERS, rank=RANK, filter_rank=FILTER_RANK, interval=INTERVAL
    ),
    "lift, rest frozen": lambda rate: optkit.lift(
        rate, **NUMBERS, rank=RANK, filter_rank=FILTER_RANK, interval=INTERVAL, rest="freeze"
    ),
    "magnitude": lambda rate: optkit.update_mask(adam(rate), masks.magnitude(SHARE), state="drop"),
    "random": lambda rate: optkit.update_mask(adam(rate), masks.random(SHARE), state="drop"),
}


def turned(data: Any) -> Any:
    """Turns flat images by a quarter."""
    images = np.rot90(data["images"].reshape(-1, 8, 8), axes=(1, 2))
    return {"images": images.reshape(-1, 64), "labels": data["labels"]}


def learner(build: Any, steps: int) -> streams.Run:
    """Returns (rate, seed) -> held-out errors of both tasks after the second, and its loss."""
    train, test = streams.digits()
    new = turned(test)

    @jax.jit
    def run(rate: jax.Array, key: jax.Array, batches: Any) -> dict[str, jax.Array]:
        start = streams.perceptron(key, WIDTH)
        _, params, _ = streams.train(adam(FIRST_RATE), start, batches[0])
        before = streams.error(params, test)
        _, params, _ = streams.train(build(rate), params, batches[1])
        return {
            "before": before,
            "loss": streams.loss(params, new),
            "new": streams.error(params, new),
            "old": streams.error(params, test),
        }

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        batches = [
            streams.drawn(data, (seed, task), steps, BATCH)
            for task, data in enumerate((train, turned(train)))
        ]
        return run(rate, jax.random.key(seed), batches)

    return numbers


def experiment(setting: Setting) -> Outcome:
    """Fine-tunes by every mask and compares the new task's loss and the old task's error."""
    steps = setting.pick(500, 4)
    rows, found, scores = [], {}, {}
    for name, build in METHODS.items():
        rates = RATES[: setting.pick(None, 1)]
        rate, scores[name], values = streams.tuned(learner(build, steps), rates, setting, "loss")
        found[name] = values
        errors = (spread(100 * values[key]) for key in ("new", "before", "old"))
        rows.append((name, number(rate), spread(values["loss"]), *errors))
    best = min(("lift", "lift, rest frozen"), key=lambda name: scores[name])
    lift = found[best]
    worse = lift["loss"] - found["all weights"]["loss"]
    kept = 100 * (found["all weights"]["old"] - lift["old"])
    others = ", ".join(
        f"{name} {100 * (found[name]['old'] - lift['old']).mean():+.1f}"
        for name in METHODS
        if name not in ("all weights", best)
    )
    return Outcome(
        claim="LIFT's loss on the new task is not above that of full fine-tuning, and its error on "
        "the old one lower, both beyond the spread of the difference over seeds",
        holds=bool(worse.mean() <= worse.std(ddof=1) and kept.mean() > kept.std(ddof=1)),
        finding=f"LIFT's ({best}) new loss is {worse.mean():+.4f} (+- {worse.std(ddof=1):.4f}) "
        f"beside full fine-tuning's; its error on the old task lower by {kept.mean():.1f} points "
        f"(+- {kept.std(ddof=1):.1f}); others' error there beside it: {others} points",
        header=(
            "trained",
            "learning rate",
            "new loss",
            "% error, new",
            "old before",
            "old after",
        ),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
