"""Shapes of real models, which tests and benchmarks of the matrix kernels share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


class ArgSpec(NamedTuple):
    """A batch of matrices of a model.

    Attributes:
      name: the model and the part of it.
      shape: (batch, m, n), m <= n.
    """

    name: str
    shape: tuple[int, int, int]

    def abstract(self, dtype: DTypeLike = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        """Returns the shape and a dtype."""
        return jax.ShapeDtypeStruct(self.shape, dtype)


ARG_SPECS = (
    ArgSpec("gpt2-small, half of an MLP in 12 layers", (12, 768, 3072)),
    ArgSpec("gpt2-small, attention of 3 layers", (12, 768, 768)),
    ArgSpec("gpt2-medium, attention of a layer", (4, 1024, 1024)),
    ArgSpec("gpt2-medium, halves of 2 MLPs", (4, 1024, 4096)),
    ArgSpec("llama-7b, attention", (1, 4096, 4096)),
    ArgSpec("llama-7b, MLP", (1, 4096, 11008)),
)
