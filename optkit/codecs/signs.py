"""Compressors to signs: one bit an entry."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from optkit.codecs.base import Codec, Parts, Random, Shape, check_positive, divided
from optkit.codecs.blocks import Layout, blocks_shape, largest, merge_blocks, split_blocks
from optkit.codecs.packing import pack_bits, unpack_bits
from optkit.codecs.table import as_float32, kept_share
from optkit.linalg.norms import norm_over


@dataclass(frozen=True)
class SignCodec(Codec):
    """One bit an entry: its sign, times the mean magnitude of the leaf or of its block.

    ``scale = sum|x|/size``, or ``norm(x)/sqrt(size)``; ``sign(x)*scale`` is read. With
    ``zero="plus"`` the sign of 0 is 1 and entries take one bit, eight in a byte; with "zero" (the
    reference of EF-SGD) it is 0, and they take two bits, four in a byte. ``scaled=False`` reads
    bare signs.

    Stores ``codes`` uint8 and ``scale`` float32, one a block. Keeps
    ``sum|x|**2 / (size*sum x**2)`` of the sum of squares in each block.

    Attributes:
      block: entries that share a scale; None for the whole leaf.
      scaled: multiply by the mean magnitude.
      size: "mean" magnitude, or "rms": the root mean square, with which 1-bit Adam keeps the norm
        of the leaf; of an uneven one that errs more, up to twice the sum of squares.
      zero: what becomes of 0.
      layout: see ``optkit.codecs.blocks``.
    """

    block: int | None = None
    scaled: bool = True
    zero: Literal["zero", "plus"] = "zero"
    layout: Layout = "auto"
    size: Literal["mean", "rms"] = "mean"

    def __post_init__(self) -> None:
        """Refuses a block of no entries."""
        if self.block is not None:
            check_positive("block", self.block)
        if self.zero not in ("zero", "plus"):
            raise ValueError(f"zero={self.zero!r} is not one of 'zero', 'plus'")
        if self.size not in ("mean", "rms"):
            raise ValueError(f"size={self.size!r} is not one of 'mean', 'rms'")

    @property
    def name(self) -> str:
        """Its block and what it does with 0."""
        kind = "sign" if self.scaled else "bare_sign"
        size = "_rms" if self.size == "rms" else ""
        return f"{kind}_{self.block or 'leaf'}_{self.zero}_{self.layout}{size}"

    def _split(self, x: jax.Array) -> jax.Array:
        if self.block is None:
            return x.reshape(1, -1)
        return split_blocks(x, self.block, self.layout)

    def _sizes(self, shape: Shape) -> jax.Array:
        """How many entries each block has, which are not there to fill it up."""
        return jnp.sum(self._split(jnp.ones(shape, jnp.float32)), axis=-1)

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Bits of the flattened array, and a scale for each block."""
        size = math.prod(shape)
        blocks: Shape = (1,)
        if self.block is not None:
            blocks = blocks_shape(shape, self.block, self.layout)[:-1]
        each = 8 if self.zero == "plus" else 4
        out = {"codes": jax.ShapeDtypeStruct((-(-size // each),), jnp.uint8)}
        if self.scaled:
            out["scale"] = jax.ShapeDtypeStruct(blocks, jnp.float32)
        return out

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Packs signs."""
        del random
        x = as_float32(x)
        flat = x.reshape(-1)
        if self.zero == "plus":
            codes = pack_bits(flat >= 0)
        else:
            codes = pack_bits(jnp.stack([flat < 0, flat > 0], axis=-1).reshape(-1))
        if not self.scaled:
            return {"codes": codes}
        return {"codes": codes, "scale": self._scale(x)}

    def _scale(self, x: jax.Array) -> jax.Array:
        blocks, sizes = self._split(x), jnp.maximum(self._sizes(x.shape), 1.0)
        if self.size == "rms":
            return norm_over(blocks, (-1,))[..., 0] / jnp.sqrt(sizes)
        return jnp.sum(jnp.abs(blocks) / sizes[..., None], axis=-1)

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads signs times scales."""
        size = math.prod(shape)
        if self.zero == "plus":
            signs = 2.0 * unpack_bits(parts["codes"], size).astype(jnp.float32) - 1.0
        else:
            bits = unpack_bits(parts["codes"], 2 * size).reshape(size, 2)
            signs = bits[:, 1].astype(jnp.float32) - bits[:, 0].astype(jnp.float32)
        signs = signs.reshape(shape)
        if not self.scaled:
            return signs
        blocks = self._split(signs) * parts["scale"][..., None]
        if self.block is None:
            return blocks.reshape(shape)
        return merge_blocks(blocks, shape, self.layout)

    def round_trip(self, x: jax.Array, random: Random | None = None) -> jax.Array:
        """Returns what is read, without packing bits, which would gather a leaf that is sharded."""
        x = as_float32(x)
        signs = jnp.where(x >= 0, 1.0, -1.0) if self.zero == "plus" else jnp.sign(x)
        if not self.scaled:
            return signs
        if self.block is None and self.size == "mean":
            return signs * jnp.sum(jnp.abs(x) / max(x.size, 1))
        if self.block is None:
            every = tuple(range(x.ndim))
            return signs * norm_over(x, every) / math.sqrt(max(x.size, 1))
        scale = self._scale(x)
        blocks = jnp.broadcast_to(scale[..., None], (*scale.shape, self.block))
        return signs * merge_blocks(blocks, x.shape, self.layout)

    def contraction(self, x: jax.Array) -> jax.Array:
        """``||x||_1**2 / (size*||x||_2**2)`` of each block; of others what they happen to."""
        x = as_float32(x)
        if not self.scaled or self.size == "rms":
            return kept_share(x, self.round_trip(x) - x)
        blocks = self._split(x)
        unit = jnp.maximum(largest(blocks.reshape(1, -1))[0], jnp.finfo(jnp.float32).tiny)
        blocks = blocks / unit
        ones = jnp.sum(jnp.abs(blocks), axis=-1)
        kept = jnp.sum(divided(jnp.square(ones), self._sizes(x.shape)))
        total = jnp.sum(jnp.square(blocks))
        return jnp.where(total > 0, divided(kept, total), 1.0)
