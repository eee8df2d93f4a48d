"""Codecs of small floats, with rounding that is exact or true on average."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import jax
import jax.numpy as jnp

from optkit.codecs.base import Codec, Parts, Random, Shape, check_options, check_positive, uniforms
from optkit.codecs.blocks import Layout, blocks_shape, largest, merge_blocks, split_blocks
from optkit.codecs.table import Rounding, as_float32, divisor, kept_share

_FP8 = jnp.float8_e4m3fn
_FP8_MAX = 448.0


def bf16_stochastic(x: jax.Array, random: Random) -> jax.Array:
    """Rounds float32 to bfloat16 at random so that the mean is the value.

    The 16 bits that bfloat16 lacks are the chance, out of ``2**16``, to round away from zero.

    Args:
      x: float32, any shape.
      random: PRNG key, or integers in [0, ``2**16``) of the shape of ``x``.

    Returns:
      bfloat16; infinities and NaN as a cast gives them.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.codecs import bf16_stochastic
      >>> x = jnp.full(2, 1.0 + 2.0**-9)  # a quarter of the way to the next number
      >>> [float(y) for y in bf16_stochastic(x, jnp.array([2**14 - 1, 2**14]))]
      [1.0078125, 1.0]
    """
    bits = jax.lax.bitcast_convert_type(as_float32(x), jnp.uint32)
    if jnp.issubdtype(random.dtype, jax.dtypes.prng_key):
        drawn = jax.random.bits(random, x.shape, jnp.uint16).astype(jnp.uint32)
    else:
        drawn = random.astype(jnp.uint32).reshape(x.shape)
    up = (drawn < (bits & 0xFFFF)).astype(jnp.uint32)
    chosen = jax.lax.bitcast_convert_type(((bits >> 16) + up).astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), chosen, x.astype(jnp.bfloat16))


def fp8_stochastic(x: jax.Array, random: Random) -> jax.Array:
    """Rounds float32 to one of the two e4m3fn neighbours, so that the mean is the value.

    Args:
      x: float32, any shape; magnitudes beyond 448 become 448.
      random: PRNG key, or numbers in [0, 1) of the shape of ``x``.

    Returns:
      float8_e4m3fn.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.codecs import fp8_stochastic
      >>> [float(y) for y in fp8_stochastic(jnp.full(2, 17.0), jnp.array([0.49, 0.5]))]
      [18.0, 16.0]
    """
    x = as_float32(x)
    u = uniforms(random, x.shape, Fp8Codec())
    size = jnp.minimum(jnp.abs(x), _FP8_MAX)
    # Three bits follow the leading one; below 2**-6 the spacing stays what it is there.
    bits = jax.lax.bitcast_convert_type(jnp.maximum(size, 2.0**-6), jnp.int32)
    ulp = jax.lax.bitcast_convert_type((bits & 0x7F800000) - (3 << 23), jnp.float32)
    steps = size / ulp
    whole = jnp.floor(steps)
    rounded = jnp.copysign((whole + (u < steps - whole)) * ulp, x)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(_FP8)


def fp8_nearest(x: jax.Array) -> jax.Array:
    """Rounds float32 to the nearest float8_e4m3fn, ties to even, as a cast does.

    Written as integer arithmetic, which CPUs do for many numbers at once; a cast they do not.

    Args:
      x: float32, any shape; of magnitude up to 448.

    Returns:
      float8_e4m3fn; NaN and infinities become NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.codecs import fp8_nearest
      >>> [float(y) for y in fp8_nearest(jnp.array([17.0, -19.0, 0.001]))]
      [16.0, -20.0, 0.001953125]
    """
    bits = jax.lax.bitcast_convert_type(as_float32(x), jnp.int32)
    size = bits & 0x7FFFFFFF
    # 20 of the 23 mantissa bits go; exponents are counted from 7, not from 127.
    normal = ((size + 0x7FFFF + ((size >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2**-6 the codes count steps of 2**-9, and lead on into the first normal ones.
    small = jnp.round(jax.lax.bitcast_convert_type(size, jnp.float32) * 512.0).astype(jnp.int32)
    code = jnp.where(size < (121 << 23), small, jnp.minimum(normal, 0x7F))
    code = code | ((bits >> 24) & 0x80)
    return jax.lax.bitcast_convert_type(code.astype(jnp.uint8), _FP8)


@dataclass(frozen=True)
class IdentityCodec(Codec):
    """Stores float32 as it is, to compare with. 4 bytes an entry."""

    @property
    def name(self) -> str:
        """Its dtype."""
        return "float32"

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """The values."""
        return {"values": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Stores a copy."""
        del random
        return {"values": as_float32(x)}

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads it."""
        return parts["values"].reshape(shape)

    def contraction(self, x: jax.Array) -> jax.Array:
        """Nothing is lost."""
        del x
        return jnp.ones((), jnp.float32)


@dataclass(frozen=True)
class Bf16Codec(Codec):
    """Stores bfloat16: 2 bytes an entry, 8 bits of precision.

    A second moment stalls in it: b2 = 0.999 changes it by less than half its last bit. Stochastic
    rounding keeps such changes on average.

    Attributes:
      rounding: "nearest" or "stochastic".
    """

    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        """Refuses another rounding."""
        check_options(self, rounding=get_args(Rounding))

    @property
    def name(self) -> str:
        """Its dtype."""
        return "bfloat16"

    @property
    def is_random(self) -> bool:
        """Whether rounding is."""
        return self.rounding == "stochastic"

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """The values."""
        return {"values": jax.ShapeDtypeStruct(shape, jnp.bfloat16)}

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Rounds; random numbers are integers below ``2**16``."""
        if not self.is_random:
            return {"values": x.astype(jnp.bfloat16)}
        if random is None:
            raise ValueError("Bf16Codec(rounding='stochastic') works at random: give it a PRNG key")
        return {"values": bf16_stochastic(as_float32(x), random)}

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads the values."""
        return parts["values"].astype(jnp.float32).reshape(shape)

    def contraction(self, x: jax.Array) -> jax.Array:
        """Half a last bit, or a whole one at random, as long as nothing underflows."""
        del x
        return jnp.float32(1.0 - (2.0**-7 if self.is_random else 2.0**-8) ** 2)


@dataclass(frozen=True)
class Fp8Codec(Codec):
    """Block-wise float8 e4m3fn: ``x/scale`` rounded, ``scale = max(max|x|, floor)/448``.

    It has both signs and 1, so that a round trip keeps the codes of a stored array. Below
    ``2**-10/448`` of the largest entry of a block nothing is left. A non-finite one makes it NaN.

    Stores ``codes`` float8_e4m3fn of the array's shape and ``scale`` float32: ``1 + 4/block`` bytes
    an entry.

    Attributes:
      block: entries that share a scale; None for the whole leaf.
      layout: see ``optkit.codecs.blocks``.
      floor: least ``max|x|`` of a block that is not all zeros; torchao's is 1e-12.
      rounding: "nearest" (even) or "stochastic".
    """

    block: int | None = 256
    layout: Layout = "auto"
    floor: float = 0.0
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        """Refuses a block of no entries."""
        if self.block is not None:
            check_positive("block", self.block)
        check_options(self, layout=get_args(Layout), rounding=get_args(Rounding))

    @property
    def name(self) -> str:
        """Its dtype, block and layout."""
        return f"e4m3fn_{self.block or 'leaf'}_{self.layout}"

    @property
    def is_random(self) -> bool:
        """Whether rounding is."""
        return self.rounding == "stochastic"

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Codes of the array's shape, and a scale for each block."""
        blocks = blocks_shape(shape, self.block, self.layout)
        return {
            "codes": jax.ShapeDtypeStruct(shape, _FP8),
            "scale": jax.ShapeDtypeStruct(blocks[:-1], jnp.float32),
        }

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Stores codes and scales."""
        if self.block is None:  # a leaf that is sharded stays where it is
            blocks = as_float32(x)
            most = jnp.max(jnp.abs(blocks), initial=0.0).reshape(1)
        else:
            blocks = split_blocks(as_float32(x), self.block, self.layout)
            most = largest(blocks)
        if self.floor > 0.0:
            most = jnp.where(most == 0.0, 0.0, jnp.maximum(most, self.floor))
        scale = most / _FP8_MAX
        y = blocks / (divisor(scale)[0, 0] if self.block is None else divisor(scale))
        if self.is_random:
            codes = fp8_stochastic(y, uniforms(random, y.shape, self))
        else:
            codes = fp8_nearest(y)
        if self.block is None:
            return {"codes": codes, "scale": scale}
        return {"codes": merge_blocks(codes, x.shape, self.layout), "scale": scale}

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads the codes as floats, times their scales."""
        if self.block is None:
            return parts["codes"].astype(jnp.float32) * parts["scale"][0]
        blocks = split_blocks(parts["codes"].astype(jnp.float32), self.block, self.layout)
        return merge_blocks(blocks * parts["scale"][..., None], shape, self.layout)

    def contraction(self, x: jax.Array) -> jax.Array:
        """A sixteenth of an entry, or half the smallest code (whole at random)."""
        ulps = 1.0 if self.is_random else 0.5
        blocks = split_blocks(as_float32(x), self.block, self.layout)
        most = jnp.maximum(largest(blocks), self.floor)[..., None]
        least = 2.0**-9 * most / _FP8_MAX
        each = ulps * jnp.maximum(jnp.abs(blocks) * 2.0**-3, least)
        return kept_share(blocks, jnp.where(blocks == 0, 0.0, each))
