"""Handwritten digits with a small Flax NNX network."""

import jax
from flax import nnx

from optkit.tasks import base, digits_data, modules


def build(*, width: int = 64, channels: int = 0, batch: int = 64) -> base.Task:
    """Builds the task "digits": classify real 8x8 images of handwritten digits.

    Args:
      width: hidden features.
      channels: filters of a 3x3 convolution before the perceptron; 0 leaves it out.
      batch: images per training step, drawn without replacement.
    """
    base.check_positive("digits", width=width, batch=batch)
    if channels < 0:
        raise base.TaskOptionError(f"task 'digits': option channels={channels} must be 0 or above")

    def model(rngs: nnx.Rngs) -> Classifier:
        return Classifier(width, channels, rngs=rngs)

    init, apply = modules.functional(model)
    kind = "convolution and perceptron" if channels else "perceptron"
    said = f"8x8 handwritten digits, {kind}"
    return digits_data.build("digits", said, init, apply, batch, modules.observed(model))


class Classifier(nnx.Module):
    """Optional convolution, two hidden layers, ten logits."""

    def __init__(self, width: int, channels: int, *, rngs: nnx.Rngs) -> None:
        he = nnx.initializers.he_normal()
        # nnx.data: an attribute that may be None or a layer must say that it holds data.
        self.conv = nnx.data(_conv(channels, rngs) if channels else None)
        features = 16 * channels if channels else 64
        self.input = nnx.Linear(features, width, kernel_init=he, rngs=rngs)
        self.hidden = nnx.Linear(width, width, kernel_init=he, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, 8, 8, 1) to logits (batch, 10)."""
        if self.conv is not None:
            images = nnx.relu(self.conv(images))
        x = images.reshape(images.shape[0], -1)
        x = nnx.relu(self.input(x))
        return self.head(nnx.relu(self.hidden(x)))


def _conv(channels: int, rngs: nnx.Rngs) -> nnx.Conv:
    he = nnx.initializers.he_normal()
    return nnx.Conv(1, channels, (3, 3), strides=2, kernel_init=he, rngs=rngs)
