"""Blocks that kernels work in: sizes that check themselves, memory on the chip, ragged arrays."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from optkit.kernels.implementation import Unserved

# A TPU's vector register: sublanes of 32 bits, and lanes.
SUBLANES, LANES = 8, 128
# A ``jax.named_scope`` for branches that hardly any input needs: ``optkit.aot`` counts none.
RARE = "rare"
# What one kernel may take. TPU: the vector memory of v5p, half that of v5e and v6e, less what the
# compiler keeps; GPU: shared memory of a block on an H100.
ON_CHIP = {"tpu": 60 * 2**20, "gpu": 227 * 2**10}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Sizes of blocks that check themselves: positive multiples of what ``multiples`` says.

    Subclasses are frozen dataclasses of ints.

    Raises:
      ValueError: with both numbers.

    Example:
      >>> @dataclasses.dataclass(frozen=True)
      ... class Tiles(Blocks):
      ...     rows: int = 256
      ...     multiples = {"rows": 128}
      >>> Tiles(rows=200)
      Traceback (most recent call last):
      ...
      ValueError: Tiles(rows=200): not a positive multiple of 128
    """

    multiples: ClassVar[Mapping[str, int]] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, of = getattr(self, field.name), self.multiples.get(field.name, 1)
            if not isinstance(value, int) or value < 1 or value % of:
                raise ValueError(
                    f"{type(self).__name__}({field.name}={value!r}): "
                    f"not a positive multiple of {of}"
                )


def check_divides(what: str, size: int, block: int) -> None:
    """Raises unless blocks fill an axis.

    Raises:
      ValueError: with both numbers.
    """
    if size % block:
        raise Unserved(f"{what} of {size} is no multiple of its block of {block}")


def check_on_chip(kernel: str, needed: int, chip: str) -> int:
    """Raises if a kernel needs more memory on the chip than there is.

    Args:
      kernel: what needs it, for the message.
      needed: bytes.
      chip: "tpu" or "gpu".

    Returns:
      The bytes needed.

    Raises:
      ValueError: with both numbers.
    """
    if needed > ON_CHIP[chip]:
        raise Unserved(
            f"{kernel} needs {needed:,} bytes on the chip, and there are {ON_CHIP[chip]:,}"
        )
    return needed


def bytes_of(*arrays: tuple[tuple[int, ...], DTypeLike]) -> int:
    """Returns the bytes of arrays given by shape and dtype."""
    return sum(math.prod(shape) * jnp.dtype(dtype).itemsize for shape, dtype in arrays)


def rounded_up(size: int, block: int) -> int:
    """Returns the smallest multiple of a block that holds a size."""
    return -(-size // block) * block


def least_filled(size: int, blocks: Iterable[int]) -> int:
    """Returns the block that an axis has to be filled up least for, the largest one if equal.

    Example:
      >>> least_filled(768, (128, 256, 512)), least_filled(100, (128, 256))
      (256, 128)
    """
    return min(sorted(blocks, reverse=True), key=lambda block: rounded_up(size, block))


def filled(x: jax.Array, blocks: Mapping[int, int]) -> jax.Array:
    """Returns an array with zeros behind some axes, up to multiples of blocks.

    Args:
      x: any array.
      blocks: by axis the block; axes may be negative.

    Returns:
      The array itself where nothing is missing.

    Example:
      >>> filled(jnp.ones((3, 5)), {0: 4, -1: 5}).shape
      (4, 5)
    """
    widths = [(0, 0)] * x.ndim
    for axis, block in blocks.items():
        widths[axis] = (0, rounded_up(x.shape[axis], block) - x.shape[axis])
    return jnp.pad(x, widths) if any(after for _, after in widths) else x


def cut(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Undoes ``filled``: the first entries of each axis."""
    return x if x.shape == shape else x[tuple(slice(size) for size in shape)]
