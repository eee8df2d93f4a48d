"""Handwritten digits with the same perceptron as the task "digits", written in Flax Linen.

It shows that a task does not care which module system made its functions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import unfreeze

from optkit.tasks import base, digits_data
from optkit.transfer import linen_activations


def build(*, width: int = 64, batch: int = 64) -> base.Task:
    """Builds the task "digits_linen": the task "digits" for users of Flax Linen.

    Args:
      width: hidden features.
      batch: images per training step, drawn without replacement.
    """
    base.check_positive("digits_linen", width=width, batch=batch)
    model = Classifier(width)

    def init(key: jax.Array) -> base.Params:
        image = jnp.zeros((1, 8, 8, 1), jnp.float32)
        return unfreeze(model.init(key, image)["params"])

    def apply(params: base.Params, images: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, images)
        return logits

    return digits_data.build(
        "digits_linen",
        "8x8 handwritten digits, perceptron in Flax Linen",
        jax.jit(init),
        apply,
        batch,
        linen_activations(model),
    )


class Classifier(nn.Module):
    """Two hidden layers, ten logits.

    Attributes:
      width: hidden features.
    """

    width: int

    def setup(self) -> None:
        """Makes the three layers."""
        he = nn.initializers.he_normal()
        self.input = nn.Dense(self.width, kernel_init=he)
        self.hidden = nn.Dense(self.width, kernel_init=he)
        self.head = nn.Dense(10)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images (batch, 8, 8, 1) to logits (batch, 10)."""
        x = images.reshape(images.shape[0], -1)
        x = nn.relu(self.input(x))
        return self.head(nn.relu(self.hidden(x)))
