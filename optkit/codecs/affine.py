"""Codecs of integers: affine groups with a zero point, and symmetric ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from optkit.codecs.base import Codec, Parts, Random, Shape, check_options, check_positive, uniforms
from optkit.codecs.blocks import (
    Layout,
    blocks_shape,
    from_nibbles,
    in_rows,
    merge_blocks,
    nibbles_shape,
    split_blocks,
    to_nibbles,
)
from optkit.codecs.table import Rounding, as_float32, kept_share


@dataclass(frozen=True)
class AffineCodec(Codec):
    """Integers of ``bits`` bits with a scale and a zero point for each group.

    1. ``low``, ``high``: the group's least and largest entry, with ``widen`` also 0;
    2. ``s = max(high-low, floor)/(2**bits-1)``; ``z = clip(-round(low/s), 0, 2**bits-1)``;
    3. ``code = clip(round(x/s) + z, 0, 2**bits-1)``; 4. ``(code - z)*s`` is read.

    Without ``widen`` (as in Q-GaLore's code) a group that does not straddle 0 collapses, because
    its zero point is cut off: all of [1, 2] is read as 1. With it the codes are the same wherever
    ``low <= 0 <= high``.

    Stores ``codes`` uint8 of the array's shape (packed: two in a byte), ``scale`` and ``zero``
    float32, one a group: ``1 + 8/group`` bytes an entry, or ``1/2 + 8/group``.

    Attributes:
      bits: of a code, from 1 to 8.
      group: entries that share a scale.
      layout: see ``optkit.codecs.blocks``.
      widen: take 0 into the range.
      floor: least range; Q-GaLore's is 1e-5, too much for optimizer state.
      rounding: "nearest" (even) or "stochastic".
      packed: two codes in a byte, for at most 4 bits.
    """

    bits: int = 8
    group: int = 256
    layout: Layout = "auto"
    widen: bool = True
    floor: float = 1e-5
    rounding: Rounding = "nearest"
    packed: bool = False

    def __post_init__(self) -> None:
        """Refuses what bytes cannot hold."""
        check_positive("group", self.group)
        check_positive("bits", self.bits)
        check_options(self, layout=get_args(Layout), rounding=get_args(Rounding))
        if self.bits > 8 or (self.packed and (self.bits > 4 or self.group % 2)):
            raise ValueError(
                f"bits={self.bits} with packed={self.packed} and group={self.group}: codes have at "
                "most 8 bits; packed, at most 4 and groups of an even number"
            )

    @property
    def name(self) -> str:
        """Its bits, group and layout."""
        packed = "_packed" if self.packed else ""
        return f"affine{self.bits}_{self.group}_{self.layout}{packed}"

    @property
    def is_random(self) -> bool:
        """Whether rounding is."""
        return self.rounding == "stochastic"

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Codes, and two numbers for each group."""
        groups = blocks_shape(shape, self.group, self.layout)
        number = jax.ShapeDtypeStruct(groups[:-1], jnp.float32)
        codes: Shape = shape
        if self.packed:
            codes = nibbles_shape(shape, self.group, self.layout)
        return {
            "codes": jax.ShapeDtypeStruct(codes, jnp.uint8),
            "scale": number,
            "zero": number,
        }

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Stores codes, scales and zero points; random numbers have the shape of the groups."""
        top = float(2**self.bits - 1)
        groups = split_blocks(as_float32(x), self.group, self.layout)
        # A short group is filled with copies of an entry, which leave its range alone.
        groups, real = _filled(groups, x.shape, self.layout)
        low, high = jnp.min(groups, axis=-1), jnp.max(groups, axis=-1)
        if self.widen:
            low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
        scale = jnp.maximum(high - low, self.floor) / top
        zero = jnp.clip(-jnp.round(low / scale), 0.0, top)
        y = groups / scale[..., None]
        if self.is_random:
            whole = jnp.floor(y)
            rounded = whole + (uniforms(random, y.shape, self) < y - whole)
        else:
            rounded = jnp.round(y)
        codes = jnp.clip(rounded + zero[..., None], 0.0, top).astype(jnp.uint8)
        codes = merge_blocks(codes, real, self.layout)
        if self.packed:
            codes = to_nibbles(codes, self.group, self.layout)
        return {"codes": codes, "scale": scale, "zero": zero}

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads ``(code - zero)*scale``."""
        codes = parts["codes"]
        if self.packed:
            codes = from_nibbles(codes, shape, self.group, self.layout)
        groups = split_blocks(codes.astype(jnp.float32), self.group, self.layout)
        values = (groups - parts["zero"][..., None]) * parts["scale"][..., None]
        return merge_blocks(values, shape, self.layout)

    def contraction(self, x: jax.Array) -> jax.Array:
        """From an error of at most one scale an entry (the zero point is rounded, too)."""
        if not self.widen:
            return jnp.float32(-jnp.inf)  # a group beside 0 has no bound
        groups = split_blocks(as_float32(x), self.group, self.layout)
        span = jnp.maximum(jnp.max(groups, -1), 0.0) - jnp.minimum(jnp.min(groups, -1), 0.0)
        each = jnp.maximum(span, self.floor) / (2**self.bits - 1) * (2.0 if self.is_random else 1.0)
        return kept_share(groups, jnp.broadcast_to(each[..., None], groups.shape))


def _filled(groups: jax.Array, shape: Shape, layout: Layout) -> tuple[jax.Array, Shape]:
    """Fills short groups with their first entry in place of 0, which would widen their range."""
    count, group = groups.shape[-2:]
    rows = in_rows(shape, group, layout)
    size = shape[-1] if rows else int(np.prod(shape))
    if size == count * group:
        return groups, shape
    place = np.arange(count * group).reshape(count, group)
    return jnp.where(
        place.reshape((1,) * (groups.ndim - 2) + place.shape) < size, groups, groups[..., :1]
    ), shape
