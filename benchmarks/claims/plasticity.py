"""Plasticity: do NaP and UPGD go on learning when labels are drawn anew, task after task?

Normalize-and-Project (Lyle et al., arXiv 2407.01800) is said to keep Adam's effective learning rate
over 200 resets of labels, UPGD (Elsayed and Mahmood, arXiv 2302.03281) to be the only method that
improves over tasks. Here: a perceptron with a normalization before each nonlinearity memorises
random labels of 400 digits, which are drawn anew 25 times; every method at its best rate.
"""

from typing import Any

import jax
import numpy as np

import optkit
from benchmarks.claims import streams
from benchmarks.claims.engine import Outcome, Setting, number, spread

RATES = {"adamw": (3e-4, 1e-3, 3e-3, 1e-2), "sgd": (0.03, 0.1, 0.3, 1.0)}
METHODS = {
    "adamw": ("adamw", lambda rate: optkit.adamw(rate, weight_decay=0.0)),
    "adamw, projected": (
        "adamw",
        lambda rate: optkit.project_to_norm(optkit.adamw(rate, weight_decay=0.0)),
    ),
    "sgd": ("sgd", lambda rate: optkit.descend(optkit.momentum(0.0), rate)),
    "upgd": ("sgd", lambda rate: optkit.upgd(rate, key=0)),
}
# What each is held against.
PAIRS = {"adamw, projected": "adamw", "upgd": "sgd"}
IMAGES, BATCH = 400, 64


def stream(seed: int, tasks: int, steps: int) -> Any:
    """Returns batches (tasks, steps, ...): the same images with labels of each task's own."""
    train, _ = streams.digits()
    random = np.random.default_rng([seed, 7])
    rows = random.permutation(len(train["labels"]))[:IMAGES]
    labels = random.integers(10, size=(tasks, IMAGES)).astype(np.int32)
    chosen = random.integers(IMAGES, size=(tasks, steps, BATCH))
    return {
        "images": train["images"][rows][chosen],
        "labels": np.take_along_axis(labels[:, None], chosen, axis=-1),
    }


def learner(build: Any, tasks: int, steps: int) -> Any:
    """Returns (rate, seed) -> mean loss over the stream, over its first and its last quarter."""

    @jax.jit
    def run(rate: jax.Array, params: Any, batches: Any) -> jax.Array:
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batches)
        losses = streams.train(build(rate), params, flat, normalised=True)[2]
        return losses.reshape(tasks, steps).mean(1)

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        online = run(rate, streams.perceptron(jax.random.key(seed)), stream(seed, tasks, steps))
        quarter = max(1, tasks // 4)
        return {
            "all": online.mean(),
            "first": online[:quarter].mean(),
            "last": online[-quarter:].mean(),
        }

    return numbers


def experiment(setting: Setting) -> Outcome:
    """Follows every method over the stream and compares the last tasks with the first ones."""
    tasks, steps = setting.pick((25, 250), (4, 3))
    rows, last, growth = [], {}, {}
    for name, (family, build) in METHODS.items():
        rates = RATES[family][: setting.pick(None, 1)]
        rate, _, found = streams.tuned(learner(build, tasks, steps), rates, setting, "all")
        last[name] = found["last"]
        growth[name] = found["last"] - found["first"]
        rows.append((name, number(rate), *(spread(found[key]) for key in ("all", "first", "last"))))
    gains = {name: last[base] - last[name] for name, base in PAIRS.items()}
    good = {name: bool(gain.mean() > gain.std(ddof=1)) for name, gain in gains.items()}
    return Outcome(
        claim="on labels drawn anew, AdamW learns the last tasks better with its weights projected "
        "to their first norms, and UPGD better than SGD, each by more than the spread over seeds",
        holds=all(good.values()),
        finding="; ".join(
            f"{name} {'does' if good[name] else 'does not'}: online loss of the last quarter lower "
            f"than that of {PAIRS[name]} by {gain.mean():.4f} (+- {gain.std(ddof=1):.4f}), "
            "change since the first quarter "
            f"{growth[name].mean():+.3f} (that of {PAIRS[name]} {growth[PAIRS[name]].mean():+.3f})"
            for name, gain in gains.items()
        ),
        header=("method", "learning rate", "online loss", "first quarter", "last quarter"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
