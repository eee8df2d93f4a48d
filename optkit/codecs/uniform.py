"""Compressors to equal steps: b-bit blocks, INT4, QSGD."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from optkit.codecs.base import Codec, Parts, Random, Shape, check_positive, divided, uniforms
from optkit.codecs.blocks import (
    Layout,
    blocks_shape,
    from_nibbles,
    largest,
    merge_blocks,
    nibbles_shape,
    split_blocks,
    to_nibbles,
)
from optkit.codecs.table import as_float32, kept_share


@dataclass(frozen=True)
class UniformCodec(Codec):
    """Equally spaced steps on both sides of 0: b-bit blocks, INT4, and QSGD.

    With ``levels = 2**(bits-1) - 1``: ``scale = max|x|`` of the block ("max"), or its norm ("norm",
    QSGD); the code is ``round(x/scale*levels)``, ``code*scale/levels`` is read. With
    ``rounding="stochastic"`` the mean of what is read is ``x``.

    Stores ``codes`` int8 of the array's shape (packed: uint8, two in a byte) and ``scale`` float32,
    one a block. Of less than 8 bits the codes could be sent in fewer bytes: ``bits/8`` an entry is
    what ``bytes`` counts.

    Attributes:
      bits: of a code with its sign, from 2 to 8.
      block: entries that share a scale; None for the whole leaf.
      norm: what the scale is.
      rounding: "nearest" (even) or "stochastic".
      layout: see ``optkit.codecs.blocks``.
      packed: two codes in a byte, for at most 4 bits.
    """

    bits: int = 4
    block: int | None = 256
    norm: Literal["max", "norm"] = "max"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    layout: Layout = "auto"
    packed: bool = False

    def __post_init__(self) -> None:
        """Refuses what has no steps."""
        if self.block is not None:
            check_positive("block", self.block)
        if self.bits not in range(2, 9):
            raise ValueError(f"bits={self.bits!r} must be from 2 to 8: a sign and a step")
        if self.packed and self.bits > 4:
            raise ValueError(f"bits={self.bits} with packed=True: a packed code has at most 4")
        if self.norm not in ("max", "norm") or self.rounding not in ("nearest", "stochastic"):
            raise ValueError(
                f"norm={self.norm!r} must be 'max' or 'norm', and rounding={self.rounding!r} "
                "'nearest' or 'stochastic'"
            )

    @property
    def name(self) -> str:
        """Its bits, block and scale."""
        packed = "_packed" if self.packed else ""
        return f"uniform{self.bits}_{self.norm}_{self.block or 'leaf'}_{self.layout}{packed}"

    @property
    def is_random(self) -> bool:
        """Whether rounding is."""
        return self.rounding == "stochastic"

    @property
    def levels(self) -> int:
        """Steps on either side of 0."""
        return 2 ** (self.bits - 1) - 1

    def _split(self, x: jax.Array) -> jax.Array:
        if self.block is None:
            return x.reshape(1, -1)
        return split_blocks(x, self.block, self.layout)

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Codes of the array's shape, and a scale for each block."""
        blocks: Shape = (1,)
        if self.block is not None:
            blocks = blocks_shape(shape, self.block, self.layout)[:-1]
        codes = jax.ShapeDtypeStruct(shape, jnp.int8)
        if self.packed:
            codes = jax.ShapeDtypeStruct(nibbles_shape(shape, self.block, self.layout), jnp.uint8)
        return {
            "codes": codes,
            "scale": jax.ShapeDtypeStruct(blocks, jnp.float32),
        }

    def bytes(self, shape: Shape) -> int:
        """What the codes take once they are packed, and the scales."""
        scales = math.prod(self.shapes(shape)["scale"].shape)
        return -(-math.prod(shape) * self.bits // 8) + 4 * scales

    def _scale(self, blocks: jax.Array) -> jax.Array:
        most = largest(blocks)
        if self.norm == "max":
            return most
        unit = jnp.where(most == 0, 1.0, most)[..., None]
        return unit[..., 0] * jnp.sqrt(jnp.sum(jnp.square(blocks / unit), axis=-1))

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Rounds to steps; random numbers have the shape of the blocks."""
        blocks = self._split(as_float32(x))
        scale = self._scale(blocks)
        y = blocks / jnp.where(scale == 0, 1.0, scale)[..., None] * self.levels
        if self.is_random:
            whole = jnp.floor(y)
            steps = whole + (uniforms(random, y.shape, self) < y - whole)
        else:
            steps = jnp.round(y)
        codes = jnp.clip(steps, -self.levels, self.levels).astype(jnp.int8)
        if self.block is None:
            codes = codes.reshape(x.shape)
        else:
            codes = merge_blocks(codes, x.shape, self.layout)
        if self.packed:
            codes = to_nibbles(codes + 8, self.block, self.layout)  # from 1 to 15
        return {"codes": codes, "scale": scale}

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads codes times scales."""
        codes = parts["codes"]
        if self.packed:
            codes = from_nibbles(codes, shape, self.block, self.layout).astype(jnp.int8) - 8
        blocks = self._split(codes.astype(jnp.float32))
        blocks = blocks * (parts["scale"] / self.levels)[..., None]
        if self.block is None:
            return blocks.reshape(shape)
        return merge_blocks(blocks, shape, self.layout)

    def contraction(self, x: jax.Array) -> jax.Array:
        """From what is cut off: a fraction f of a step, or at random f*(1-f) steps squared."""
        blocks = self._split(as_float32(x))
        step = (self._scale(blocks) / self.levels)[..., None]
        below = jnp.abs(divided(blocks, jnp.broadcast_to(step, blocks.shape))) % 1.0
        each = (
            jnp.sqrt(below * (1.0 - below)) if self.is_random else jnp.minimum(below, 1.0 - below)
        )
        return kept_share(blocks, each * step)
