"""Adaptive memory: is a coefficient that follows the gradients as good as the best fixed one?

The paper (arXiv 2510.04988) claims so for convex problems, images and language models. Here:
logistic regression and a perceptron of two hidden layers on scikit-learn's digits, SGD and AdamW,
every method at its best learning rate of one grid, losses on all training images.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import Outcome, Problem, Setting, Trainer, number, spread
from optkit import tasks
from optkit.tasks.digits_data import load

COEFFICIENTS = (0.0, 0.5, 0.9, 0.95)
RATES = {"sgd": (0.03, 0.1, 0.3, 1.0), "adamw": (3e-4, 1e-3, 3e-3, 1e-2)}
BATCH = 32


def minibatches(seed: int, steps: int) -> Any:
    """Draws training images with replacement."""
    train = load().train
    rows = np.random.default_rng([seed, 5]).integers(len(train["labels"]), size=(steps, BATCH))
    return jax.tree.map(lambda x: x[rows], train)


def logistic() -> Problem:
    """Returns softmax regression, a convex problem."""

    def loss(params: Any, batch: Any) -> jax.Array:
        x = batch["images"].reshape(-1, 64) @ params["head"]["kernel"]
        logits = x + params["head"]["bias"][None]
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch["labels"]
        ).mean()

    def init(key: jax.Array) -> Any:
        return {"head": {"kernel": 0.01 * jax.random.normal(key, (64, 10)), "bias": jnp.zeros(10)}}

    return Problem(init, loss, minibatches, load().train)


def perceptron() -> Problem:
    """Returns the digits task of the library."""
    task = tasks.get("digits")
    return Problem(task.init, lambda p, b: task.loss(p, b)[0], minibatches, load().train)


def contestants(family: str) -> dict[str, Any]:
    """Methods of a family: fixed coefficients, and the one that adapts."""
    if family == "sgd":
        fixed = {
            f"sgd, beta {b}": lambda rate, b=b: optkit.descend(optkit.momentum(b), rate)
            for b in COEFFICIENTS
        }
        return {"am_msgd": optkit.am_msgd, **fixed}
    fixed = {
        f"adamw, beta {b}": lambda rate, b=b: optkit.adamw(rate, b1=b, weight_decay=0.0)
        for b in COEFFICIENTS
    }
    return {"am_adamw": optkit.am_adamw, **fixed}


def experiment(setting: Setting) -> Outcome:
    """Trains every method on both problems and compares it with the best fixed coefficient."""
    steps, evaluations = setting.pick((400, 10), (4, 2))
    problems = {"logistic": logistic, "perceptron": perceptron}
    rows, gaps = [], {}
    for problem_name in list(problems)[: setting.pick(None, 1)]:
        problem = problems[problem_name]()
        for family, rates in RATES.items():
            final = {}
            chosen = list(contestants(family).items())[: setting.pick(None, 2)]
            for name, build in chosen:
                trainer = Trainer(problem, build, steps=steps, evaluations=evaluations)
                curves = trainer.tuned(rates[: setting.pick(None, 1)], setting)
                losses = curves.held_out[0, :, -1]
                final[name] = float(losses.mean())
                rows.append((problem_name, name, number(curves.rates[0]), spread(losses)))
            adaptive, *fixed = final.values()
            gaps[f"{family} on {problem_name}"] = adaptive / min(fixed) - 1.0
    return Outcome(
        claim="the adaptive coefficient ends at most 2% above the best fixed one, whichever it is",
        holds=all(gap <= 0.02 for gap in gaps.values()),
        finding="loss beside the best fixed coefficient: "
        + ", ".join(f"{name} {100 * gap:+.1f}%" for name, gap in gaps.items()),
        header=("problem", "method", "learning rate", "training loss"),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
