"""EWC and CLASSP: is the first task kept while the second one is learned, without replay?

EWC is Kirkpatrick et al., arXiv 1612.00796; that CLASSP forgets less than it is the claim of
Ludwig, arXiv 2405.09637. Here: scikit-learn's digits, then the same digits with their pixels
shuffled; one perceptron of two hidden layers, one head. Every method has one grid of rates, and the
ones with another number of their own several values of it; all of them are chosen by the mean
held-out error of both tasks after the second, with seeds that are not reported.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims import streams
from benchmarks.claims.engine import Outcome, Setting, number, spread

RATES = (0.01, 0.03, 0.1, 0.3)
STRENGTHS = (3.0, 10.0, 30.0)
THRESHOLDS = (1e-6, 1e-4, 1e-3)
BATCH, SHUFFLE, EXAMPLES = 32, 3, 512


def sgd(rate: Any) -> Any:
    """Plain gradient descent."""
    return optkit.descend(optkit.momentum(0.0), rate)


def fisher(params: Any, images: jax.Array, key: jax.Array) -> Any:
    """Mean of squared gradients of single examples, with labels drawn from the model."""
    labels = jax.random.categorical(key, streams.logits(params, images))

    def one(image: jax.Array, label: jax.Array) -> Any:
        example = {"images": image[None], "labels": label[None]}
        return jax.grad(streams.loss)(params, example)

    return jax.tree.map(lambda g: jnp.mean(g * g, 0), jax.vmap(one)(images, labels))


def methods() -> dict[str, tuple[str, Any, Any]]:
    """Name -> (family, rate -> first task's transformation, (rate, fisher, params) -> second's).

    None for the second: the first goes on, with its state.
    """
    found: dict[str, tuple[str, Any, Any]] = {"sgd": ("sgd", sgd, None)}
    for strength in STRENGTHS:

        def second(rate: Any, importance: Any, anchor: Any, strength: float = strength) -> Any:
            prior = optkit.elastic_prior(strength, fisher=importance, anchor=anchor)
            return optax.chain(prior, sgd(rate))

        found[f"ewc, strength {strength:g}"] = ("ewc", sgd, second)
        found[f"ewc_online, strength {strength:g}"] = (
            "ewc_online",
            lambda rate, strength=strength: optkit.ewc_online(rate, strength=strength),
            None,
        )
    for threshold in THRESHOLDS:
        found[f"classp, threshold {threshold:g}"] = (
            "classp",
            lambda rate, threshold=threshold: optkit.classp(rate, threshold=threshold),
            None,
        )
    return found


def learner(first: Any, second: Any, steps: int) -> streams.Run:
    """Returns (rate, seed) -> held-out errors of the first task before and after the second."""
    (train_a, test_a), (train_b, test_b) = streams.digits(), streams.digits(SHUFFLE)

    @jax.jit
    def run(rate: jax.Array, key: jax.Array, batches: Any) -> dict[str, jax.Array]:
        tx = first(rate)
        state, params, _ = streams.train(tx, streams.perceptron(key), batches[0])
        before = streams.error(params, test_a)
        if second is not None:
            importance = fisher(params, train_a["images"][:EXAMPLES], key)
            tx, state = second(rate, importance, params), None
        _, params, _ = streams.train(tx, params, batches[1], state)
        after, other = streams.error(params, test_a), streams.error(params, test_b)
        return {"before": before, "after": after, "second": other, "mean": (after + other) / 2}

    def numbers(rate: float, seed: int) -> dict[str, Any]:
        batches = [
            streams.drawn(data, (seed, task), steps, BATCH)
            for task, data in enumerate((train_a, train_b))
        ]
        return run(rate, jax.random.key(seed), batches)

    return numbers


def experiment(setting: Setting) -> Outcome:
    """Trains every method on both tasks in turn and compares the mean error of both at the end."""
    steps = setting.pick(600, 4)
    rows, means, scores = [], {}, {}
    columns = ("before", "after", "second", "mean")
    for name, (family, first, second) in methods().items():
        if setting.quick and family in scores:
            continue
        rates = RATES[: setting.pick(None, 1)]
        run = learner(first, second, steps)
        rate, score, found = streams.tuned(run, rates, setting, "mean")
        rows.append((name, number(rate), *(spread(100 * found[key]) for key in columns)))
        if score < scores.get(family, np.inf):
            scores[family], means[family] = score, (name, 100 * found["mean"])
    plain = means["sgd"][1]
    gains = {family: plain - mean for family, (_, mean) in means.items() if family != "sgd"}
    good = {family: bool(g.mean() > g.std(ddof=1)) for family, g in gains.items()}
    over_ewc = means["ewc"][1] - means["classp"][1]
    return Outcome(
        claim="after two digit tasks in sequence EWC and CLASSP have a lower mean error of both "
        "than SGD, and CLASSP a lower one than EWC, each by more than the spread over seeds",
        holds=good["ewc"] and good["classp"] and bool(over_ewc.mean() > over_ewc.std(ddof=1)),
        finding="; ".join(
            f"{means[family][0]}: mean error lower than SGD's by {g.mean():.1f} points "
            f"(+- {g.std(ddof=1):.1f})"
            for family, g in gains.items()
        )
        + f"; CLASSP's lower than EWC's by {over_ewc.mean():.1f} (+- {over_ewc.std(ddof=1):.1f})",
        header=(
            "method",
            "learning rate",
            "% error of the first",
            "after the second",
            "% error of the second",
            "mean of both",
        ),
        rows=tuple(rows),
        seeds=setting.seeds,
    )
