"""Codecs of one scale a block and a table of what the codes stand for."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit.codecs.base import Codec, Parts, Random, Shape, check_options, check_positive, uniforms
from optkit.codecs.blocks import (
    Layout,
    blocks_shape,
    in_rows,
    largest,
    merge_blocks,
    split_blocks,
)
from optkit.codecs.locate import count_below
from optkit.codecs.packing import pack_nibbles, unpack_nibbles
from optkit.codecs.tables import TableKind, table

Rounding = Literal["nearest", "stochastic"]
Scale = Literal["magnitude", "extreme"]


def as_float32(x: jax.Array) -> jax.Array:
    """Codecs compute in float32, whatever they are given."""
    return jnp.asarray(x, jnp.float32)


def divisor(scale: jax.Array) -> jax.Array:
    """Returns scales ``(..., 1)`` to divide blocks by: 1 for a block of zeros."""
    return jnp.where(scale == 0.0, 1.0, scale)[..., None]


@dataclass(frozen=True)
class TableCodec(Codec):
    """Block-wise codes of up to 8 bits: ``x`` is stored as the entry nearest to ``x/scale``.

    1. ``scale = max|x|`` of each block of ``block`` neighbours; 2. the code is the number of
    midpoints between neighbouring entries that are below ``x/scale``; 3. ``table[code]*scale`` is
    read. Non-finite entries make all of their block NaN or infinite: nothing hides them.

    **The signed tables have no -1.** A block whose largest entry is negative loses 0.7 % of it at
    each round trip, without any new data. ``scale="extreme"`` stores the largest entry with its
    sign as the scale, which no round trip changes, for the same bytes; the references have
    "magnitude".

    Stores ``codes`` uint8 of the array's shape (two of 4 bits in a byte, the first one in the high
    half) and ``scale`` float32, one a block: ``bits/8 + 4/block`` bytes an entry.

    Attributes:
      kind: "dynamic" (bitsandbytes, torchao), "linear", "e4m3" and "e5m2" (floats as tables),
        "nf4" (4 bits), or "sixteenths" (torchao's second moment of 4 bits).
      bits: of a code, 8 or 4.
      signed: entries of both signs; unsigned, negative values are stored as the least entry.
      block: entries that share a scale; at least 2.
      layout: see ``optkit.codecs.blocks``.
      scale: "magnitude" or "extreme", see above.
      floor: least scale of a block that is not all zeros; torchao's is 1e-12. A block of zeros
        is read as zeros (torchao's only before the first update).
      ties: "lower" entry (bitsandbytes), or the "upper" (torchao).
      keep_sign: an entry of the other sign (also 0) is replaced by its neighbour, as in
        bitsandbytes' CUDA kernels for first moments.
      rounding: "stochastic" chooses between the two nearest entries so that the mean is ``x``.
      exponent_bits: decades of the dynamic map; one less than ``bits`` if None.
    """

    kind: TableKind = "dynamic"
    bits: int = 8
    signed: bool = True
    block: int = 256
    layout: Layout = "auto"
    scale: Scale = "magnitude"
    floor: float = 0.0
    ties: Literal["lower", "upper"] = "lower"
    keep_sign: bool = False
    rounding: Rounding = "nearest"
    exponent_bits: int | None = None

    def __post_init__(self) -> None:
        """Refuses options that fit no table."""
        check_positive("block", self.block)
        check_options(
            self,
            layout=get_args(Layout),
            scale=get_args(Scale),
            ties=("lower", "upper"),
            rounding=get_args(Rounding),
        )
        if self.block < 2 or (self.bits == 4 and self.block % 2):
            raise ValueError(
                f"block={self.block} cannot be served: a block of 1 stores only signs, and codes "
                "of 4 bits come in pairs; give an even number, such as 256"
            )
        if self.bits not in (4, 8):
            raise ValueError(f"bits={self.bits!r} must be 4 or 8, what fills bytes")
        if self.scale == "extreme" and not self.signed:
            raise ValueError("scale='extreme' is for signed tables; leave it out")
        table(self.kind, self.signed, self.bits, self.exponent_bits)

    @property
    def name(self) -> str:
        """The table, its sign, block and layout."""
        split = "" if self.exponent_bits is None else f"e{self.exponent_bits}"
        sign = "signed" if self.signed else "unsigned"
        bits = self.bits if self.kind in ("dynamic", "linear") else ""
        return f"{self.kind}{bits}{split}_{sign}_{self.block}_{self.layout}"

    @property
    def is_random(self) -> bool:
        """Whether rounding is."""
        return self.rounding == "stochastic"

    @property
    def entries(self) -> np.ndarray:
        """The table, float32, sorted."""
        held = table(self.kind, self.signed, self.bits, self.exponent_bits)
        return np.frombuffer(held, np.float32)

    def for_sign(self, signed: bool) -> "TableCodec":
        """The same table for the other sign; torchao's one of 4 bits is "sixteenths" unsigned."""
        if signed == self.signed:
            return self
        kind = self.kind
        if self.bits == 4 and kind in ("dynamic", "sixteenths"):
            kind = "dynamic" if signed else "sixteenths"
        split = self.exponent_bits if kind == "dynamic" else None
        if self.bits == 4 and kind == "dynamic" and split is None:
            split = 3
        scale: Scale = self.scale if signed else "magnitude"
        return dataclasses.replace(
            self, kind=kind, signed=signed, scale=scale, exponent_bits=split, keep_sign=False
        )

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Codes of the array's shape, half its rows (or flat) if packed; a scale for each block."""
        blocks = blocks_shape(shape, self.block, self.layout)
        rows = in_rows(shape, self.block, self.layout)
        codes: Shape = shape
        if self.bits == 4:
            lead = shape[:-1] if rows else ()
            size = shape[-1] if rows else int(np.prod(shape))
            codes = (*lead, -(-size // 2))
        return {
            "codes": jax.ShapeDtypeStruct(codes, jnp.uint8),
            "scale": jax.ShapeDtypeStruct(blocks[:-1], jnp.float32),
        }

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Stores codes and scales."""
        blocks = split_blocks(as_float32(x), self.block, self.layout)
        scale = largest(blocks)
        if self.floor > 0.0:
            scale = jnp.where(scale == 0.0, 0.0, jnp.maximum(scale, self.floor))
        if self.scale == "extreme":
            top = jnp.max(blocks, axis=-1)
            # Should the largest magnitude be there with both signs, either is exact.
            scale = jnp.where((top < scale) & (scale > 0.0), -scale, scale)
        y = blocks / divisor(scale)
        codes = self._round(y, random)
        if self.bits == 4:
            merged = merge_blocks(codes, x.shape, self.layout)
            rows = in_rows(x.shape, self.block, self.layout)
            merged = merged if rows else merged.reshape(-1)
            if merged.shape[-1] % 2:
                merged = jnp.pad(merged, [(0, 0)] * (merged.ndim - 1) + [(0, 1)])
            return {"codes": pack_nibbles(merged), "scale": scale}
        return {"codes": merge_blocks(codes, x.shape, self.layout), "scale": scale}

    def _round(self, y: jax.Array, random: Random | None) -> jax.Array:
        entries = self.entries
        if self.is_random:
            u = uniforms(random, y.shape, self)
            low = jnp.clip(count_below(y, entries, ties=True) - 1, 0, len(entries) - 2)
            below, above = (_look(entries, low + i) for i in (0, 1))
            codes = low + (u < (y - below) / (above - below))
        else:
            middles = (entries[:-1] + entries[1:]) / np.float32(2.0)
            codes = count_below(y, middles, ties=self.ties == "upper")
            if self.keep_sign:
                off = jnp.sign(_look(entries, codes)) != jnp.sign(y)
                towards = jnp.where(y > 0, 1, -1)
                codes = jnp.where(off & (y != 0), codes + towards, codes)
                codes = jnp.clip(codes, 0, len(entries) - 1)
        return codes.astype(jnp.uint8)

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads entries of the table, times their scales."""
        codes = parts["codes"]
        if self.bits == 4:
            codes = unpack_nibbles(codes)
            size = shape[-1] if in_rows(shape, self.block, self.layout) else int(np.prod(shape))
            if codes.shape[-1] != size:
                codes = jax.lax.slice_in_dim(codes, 0, size, axis=codes.ndim - 1)
            codes = codes.reshape(shape)
        blocks = _look(self.entries, split_blocks(codes, self.block, self.layout).astype(jnp.int32))
        return merge_blocks(blocks * parts["scale"][..., None], shape, self.layout)

    def contraction(self, x: jax.Array) -> jax.Array:
        """From the widest gap of the table: half of it times the scale is the error's bound."""
        gaps = np.diff(self.entries)
        half = float(gaps.max()) / (1.0 if self.is_random else 2.0)
        # What is beyond the ends of the table.
        beyond = 1.0 + float(self.entries[0]) if self.signed else float(self.entries[0])
        blocks = split_blocks(as_float32(x), self.block, self.layout)
        each = max(half, beyond) * jnp.maximum(largest(blocks), self.floor)
        return kept_share(blocks, jnp.broadcast_to(each[..., None], blocks.shape))


def kept_share(x: jax.Array, error: jax.Array) -> jax.Array:
    """Returns ``1 - sum(error**2)/sum(x**2)`` of numbers of any scale; 1 for zeros."""
    most = jnp.max(jnp.abs(x), initial=0.0)
    unit = jnp.where(most > 0, most, 1.0)
    total, lost = jnp.sum(jnp.square(x / unit)), jnp.sum(jnp.square(error / unit))
    return jnp.where(total > 0, 1.0 - lost / jnp.where(total > 0, total, 1.0), 1.0)


def _look(values: np.ndarray, index: jax.Array) -> jax.Array:
    # 32-bit indices known to be inside: that compiles to vectors.
    return jnp.asarray(values).at[index].get(mode="promise_in_bounds")
