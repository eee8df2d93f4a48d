"""Drop-Muon: does updating less reach a training loss sooner on the clock?

Gruntkowska et al., arXiv 2510.02239, report up to 1.4 on a clock for a convolutional network. Here:
a perceptron of six hidden layers of width 256 on scikit-learn's digits. The cut is drawn on the
host and each cut is a program of its own, so that neither the backward pass below it nor the
orthogonalization of what lies there is paid for. Compilation is not timed.
"""

import dataclasses
import itertools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks.claims.engine import SEARCH, Outcome, Setting, number, spread
from optkit.tasks.digits_data import load

LAWS: dict[str, dict[str, Any]] = {
    "muon": {"sampling": 1},
    "drop uniform": {"sampling": "uniform"},
    "drop shifted": {"sampling": "epoch_shifted"},
}
RATES = (0.01, 0.02, 0.05, 0.1)
ADAM_RATE = 1e-3
EVERY = 10


@dataclasses.dataclass(frozen=True)
class Size:
    """Sizes of model and run."""

    width: int = 256
    layers: int = 6
    batch: int = 512
    steps: int = 300


@dataclasses.dataclass(frozen=True)
class Run:
    """Seconds, training loss and test accuracy after every ``EVERY`` steps."""

    seconds: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray

    def time_to(self, loss: float) -> float:
        """Seconds until the training loss is at or below a value; inf if never."""
        reached = np.flatnonzero(self.loss <= loss)
        return float(self.seconds[reached[0]]) if reached.size else np.inf

    def accuracy_at(self, seconds: float) -> float:
        """Test accuracy at a time, that of the last evaluation before it."""
        index = np.searchsorted(self.seconds, seconds, side="right") - 1
        return float(self.accuracy[max(index, 0)])


def initial(seed: int, size: Size, inputs: int) -> Any:
    """Returns kernels of deviation sqrt(2 / fan_in) and a small head."""
    widths = [inputs, *[size.width] * size.layers]
    keys = iter(jax.random.split(jax.random.key(seed), size.layers + 1))
    params = {
        f"dense_{i}": {"kernel": jax.random.normal(next(keys), (a, b)) * np.sqrt(2 / a)}
        for i, (a, b) in enumerate(itertools.pairwise(widths))
    }
    head = 0.1 * jax.random.normal(next(keys), (size.width, 10)) / np.sqrt(size.width)
    return {**params, "head": {"kernel": head}}


def logits(params: Any, images: jax.Array) -> jax.Array:
    """Applies the perceptron."""
    x = images
    for i in range(len(params) - 1):
        x = jax.nn.relu(x @ params[f"dense_{i}"]["kernel"])
    return x @ params["head"]["kernel"]


def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits(params, images), labels)
    return each.mean()


class Trainer:
    """Trains with one law; programs of all cuts are compiled before the clock starts."""

    def __init__(self, law: dict[str, Any], size: Size) -> None:
        """Compiles nothing yet."""
        self.size, self.data = size, load()
        self.law = dict(law)
        if law["sampling"] == "epoch_shifted":
            self.law["shift_steps"] = size.steps
        gradients = optkit.partial_value_and_grad(loss)

        def step(rate: Any, state: Any, params: Any, images: Any, labels: Any, cut: int) -> Any:
            _, grads = gradients(params, cut, images, labels)
            updates, state = self.tx(rate).update(grads, state, params, cut=cut)
            return state, optax.apply_updates(params, updates)

        self.step = jax.jit(step, static_argnames="cut")
        self.loss = jax.jit(loss)
        self.correct = jax.jit(lambda p, x, y: jnp.mean(jnp.argmax(logits(p, x), -1) == y))

    def tx(self, rate: Any) -> Any:
        """Returns Muon that trains the layers from the drawn one on."""
        muon = optkit.muon(rate, adam_learning_rate=ADAM_RATE)
        return optkit.drop_layers(muon, **self.law)

    def run(self, rate: float, seed: int) -> Run:
        """Trains once."""
        flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
        images, labels = flat(self.data.train["images"]), self.data.train["labels"]
        test = flat(self.data.held_out["images"])
        random = np.random.default_rng([seed, 5])
        params = initial(seed, self.size, images.shape[1])
        state = self.tx(rate).init(params)
        first = (jnp.float32(rate), state, params, images[: self.size.batch])
        cuts = [1] if self.law["sampling"] == 1 else range(1, self.size.layers + 2)
        for cut in cuts:
            jax.block_until_ready(self.step(*first, labels[: self.size.batch], cut=cut))
        seconds, found = 0.0, []
        for _ in range(self.size.steps // EVERY):
            rows = random.integers(len(images), size=(EVERY, self.size.batch))
            batches = [(images[row], labels[row]) for row in rows]
            start = time.perf_counter()
            for x, y in batches:
                cut = int(optkit.next_cut(state))
                state, params = self.step(jnp.float32(rate), state, params, x, y, cut=cut)
            jax.block_until_ready(params)
            seconds += time.perf_counter() - start
            value = float(self.loss(params, images, labels))
            right = float(self.correct(params, test, self.data.held_out["labels"]))
            found.append((seconds, value if np.isfinite(value) else np.inf, right))
        return Run(*map(np.array, zip(*found, strict=True)))


def experiment(setting: Setting) -> Outcome:
    """Compares time to a training loss, and accuracy at equal steps and equal seconds."""
    size = setting.pick(Size(), Size(width=16, layers=2, batch=16, steps=2 * EVERY))
    goal = setting.pick(0.02, 2.0)
    rates = RATES[: setting.pick(None, 1)]
    runs: dict[str, list[Run]] = {}
    chosen = {}
    for name, law in LAWS.items():
        trainer = Trainer(law, size)
        search = {rate: trainer.run(rate, SEARCH[0]).time_to(goal) for rate in rates}
        chosen[name] = min(search, key=lambda rate: search[rate])
        runs[name] = [trainer.run(chosen[name], seed) for seed in setting.seeds]
    mean = {name: float(np.mean([run.time_to(goal) for run in own])) for name, own in runs.items()}
    limit = min(float(run.seconds[-1]) for own in runs.values() for run in own)
    rows = tuple(
        (
            name,
            number(chosen[name]),
            spread(np.array([run.time_to(goal) for run in own]), never="never"),
            f"{1e3 * np.mean([run.seconds[-1] for run in own]) / size.steps:.2f}",
            f"{np.mean([run.accuracy[-1] for run in own]):.4f}",
            f"{np.mean([run.accuracy_at(limit) for run in own]):.4f}",
        )
        for name, own in runs.items()
    )
    best = min((name for name in LAWS if name != "muon"), key=lambda name: mean[name])
    return Outcome(
        claim=f"dropping layers reaches a training loss of {goal:g} sooner than Muon on the clock",
        holds=mean[best] < mean["muon"],
        finding=f"{best} needs {mean[best]:.2f} s, muon {mean['muon']:.2f} s",
        header=(
            "method",
            "learning rate",
            f"s to loss {goal:g}",
            "ms a step",
            "accuracy, equal steps",
            "accuracy, equal s",
        ),
        rows=rows,
        seeds=setting.seeds,
    )
