"""Compressors that keep some entries: the largest, or any."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from optkit.codecs.base import Codec, Parts, Random, Shape, uniforms
from optkit.codecs.table import as_float32


def _wide(x: jax.Array) -> jax.Array:
    """In float32, or as it is in float64."""
    return x if x.dtype == jnp.float64 else as_float32(x)


def _kept(k: float, size: int) -> int:
    """How many entries of a size a number or a share of them is; at least 1 of any."""
    return min(size, max(1, round(k * size) if isinstance(k, float) else k))


def _check_k(k: float) -> None:
    if isinstance(k, bool) or not isinstance(k, int | float) or not k > 0:
        raise ValueError(f"k={k!r} must be a number of entries (int), or a share (float up to 1)")
    if isinstance(k, float) and k > 1.0:
        raise ValueError(f"k={k!r} is a share and must be at most 1; give an int for a number")


@dataclass(frozen=True)
class _Sparse(Codec):
    """Entries of an array with their places in it."""

    k: float = 0.01

    def __post_init__(self) -> None:
        """Refuses to keep nothing."""
        _check_k(self.k)

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Values and places."""
        kept = (_kept(self.k, math.prod(shape)),)
        return {
            "values": jax.ShapeDtypeStruct(kept, jnp.float32),
            "places": jax.ShapeDtypeStruct(kept, jnp.int32),
        }

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Reads an array that is 0 elsewhere."""
        flat = jnp.zeros(math.prod(shape), parts["values"].dtype)
        return flat.at[parts["places"]].set(parts["values"]).reshape(shape)


@dataclass(frozen=True)
class TopK(_Sparse):
    """Keeps the entries of largest magnitude: of equal ones those that come first.

    Stores ``values`` float32 and ``places`` int32 of the flattened array: 8 bytes a kept entry.
    Keeps at least ``k/size`` of the sum of squares.

    Attributes:
      k: how many (int), or which share (float), at least one.
    """

    @property
    def name(self) -> str:
        """How many it keeps."""
        return f"top_{self.k}"

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Sorts the magnitudes."""
        del random
        flat = _wide(x).reshape(-1)
        _, places = jax.lax.top_k(jnp.abs(flat), _kept(self.k, flat.size))
        return {"values": flat[places], "places": places.astype(jnp.int32)}

    def contraction(self, x: jax.Array) -> jax.Array:
        """No fewer than the share of entries."""
        return jnp.float32(_kept(self.k, x.size) / max(x.size, 1))


@dataclass(frozen=True)
class RandomK(_Sparse):
    """Keeps entries chosen at random, without repetition.

    With ``unbiased`` they are multiplied by ``size/k``, so that the mean of what is read is the
    array; then it contracts nothing, and has no place in error feedback.

    Stores ``values`` float32 and ``places`` int32 of the flattened array: 8 bytes a kept entry.
    Keeps ``k/size`` of the sum of squares on average.

    Attributes:
      k: how many (int), or which share (float), at least one.
      unbiased: see above.
    """

    unbiased: bool = False

    @property
    def name(self) -> str:
        """How many it keeps."""
        return f"random_{self.k}" + ("_unbiased" if self.unbiased else "")

    @property
    def is_random(self) -> bool:
        """The choice is."""
        return True

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Keeps the places of the smallest of as many random numbers."""
        flat = _wide(x).reshape(-1)
        count = _kept(self.k, flat.size)
        _, places = jax.lax.top_k(-uniforms(random, flat.shape, self), count)
        scale = flat.size / count if self.unbiased and count else 1.0
        return {"values": flat[places] * scale, "places": places.astype(jnp.int32)}

    def contraction(self, x: jax.Array) -> jax.Array:
        """The share of entries; of the unbiased one ``1 - (size/k - 1)``, mostly negative."""
        share = _kept(self.k, x.size) / max(x.size, 1)
        return jnp.float32(2.0 - 1.0 / share if self.unbiased and share else share)
