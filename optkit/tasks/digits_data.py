"""Handwritten digits: real 8x8 images that ship with scikit-learn, split and scaled once."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optkit.tasks import base

_HELD_OUT = 360  # of 1797
_SPLIT_SEED = 20240229  # fixed: the split never depends on the run's seed


@dataclass(frozen=True)
class Digits:
    """The split data.

    Attributes:
      train: `images` float32 (1437, 8, 8, 1) and `labels` int32 (1437,).
      held_out: the same for 360 other images, scaled with the mean and deviation of `train`.
    """

    train: base.Batch
    held_out: base.Batch


@functools.cache
def load() -> Digits:
    """Returns the digits; the same split every time.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "the digits tasks need scikit-learn for their images; install it with: "
            'pip install "optkit[cli]"'
        ) from error
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(labels))
    held_out, train = order[:_HELD_OUT], order[_HELD_OUT:]
    # One deviation for all pixels: some at the border never change.
    mean, deviation = images[train].mean(), images[train].std()
    images = ((images - mean) / deviation).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = labels.astype(np.int32)
    return Digits(
        {"images": images[train], "labels": labels[train]},
        {"images": images[held_out], "labels": labels[held_out]},
    )


def build(
    name: str,
    description: str,
    init: Callable[[jax.Array], base.Params],
    apply: Callable[..., jax.Array],
    batch: int,
    observe: Callable[..., base.Metrics] | None = None,
) -> base.Task:
    """Builds a digits task around any classifier.

    Args:
      name: task name.
      description: one line.
      init: `init(key) -> params`.
      apply: `apply(params, images) -> logits`, (batch, 8, 8, 1) to (batch, 10).
      batch: images per training step.
      observe: `observe(params, images)`, the outputs of its modules by path.
    """
    base.check_positive(name, batch=batch)
    data = load()
    count = len(data.train["labels"])
    if batch > count:
        raise base.TaskOptionError(
            f"task {name!r}: batch={batch} must be at most {count}, the training images"
        )

    def loss(params: base.Params, batch: base.Batch) -> tuple[jax.Array, base.Metrics]:
        return cross_entropy(apply(params, batch["images"]), batch["labels"])

    def sample(seed: int, step: int) -> base.Batch:
        rows = base.generator(seed, step).choice(count, size=batch, replace=False)
        return {field: values[rows] for field, values in data.train.items()}

    held_out_loss = jax.jit(loss)

    def evaluate(params: base.Params) -> dict[str, float]:
        value, metrics = held_out_loss(params, data.held_out)
        return {"loss": float(value), "error": float(metrics["error"])}

    return base.Task(
        name=name,
        description=description,
        metric="error",
        init=init,
        loss=loss,
        batch=sample,
        evaluate=evaluate,
        default_steps=300,
        parameters=base.count_parameters(init),
        activations=observe and (lambda params, batch: observe(params, batch["images"])),
        logits=lambda params, batch: apply(params, batch["images"]),
    )


def cross_entropy(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, base.Metrics]:
    """Returns the mean cross-entropy in nats, float32, and the share of wrong answers."""
    logits = logits.astype(jnp.float32)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    wrong = jnp.argmax(logits, axis=-1) != labels
    return losses.mean(), {"error": wrong.mean(dtype=jnp.float32)}
