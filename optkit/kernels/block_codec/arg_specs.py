"""Shapes of moments of real models, which tests and benchmarks share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optkit.codecs.table import TableCodec


class ArgSpec(NamedTuple):
    """A parameter whose moments are stored.

    Attributes:
      name: the model and the part of it.
      shape: of the parameter.
      bits: of a code.
    """

    name: str
    shape: tuple[int, ...]
    bits: int = 8

    @property
    def codecs(self) -> list[TableCodec]:
        """Adam's: of a first moment, and of a second one."""
        signed = TableCodec()
        if self.bits == 4:
            signed = TableCodec(bits=4, exponent_bits=3, block=128)
        return [signed, signed.for_sign(False)]

    def abstract(self, dtype: DTypeLike = jnp.float32) -> jax.ShapeDtypeStruct:
        """Returns the shape and a dtype."""
        return jax.ShapeDtypeStruct(self.shape, dtype)


ARG_SPECS = (
    ArgSpec("gpt2-small, half of an MLP", (768, 3072)),
    ArgSpec("the same, 4 bits", (768, 3072), 4),
    ArgSpec("gpt2-small, embedding", (50257, 768)),
    ArgSpec("llama-7b, MLP", (4096, 11008)),
    ArgSpec("resnet-50, last convolution", (3, 3, 512, 512)),
)
