"""What a codec is: a rule by which an array is stored in fewer bytes, and read again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Shape: TypeAlias = tuple[int, ...]
Parts: TypeAlias = dict[str, jax.Array]
# A PRNG key, or the random numbers themselves.
Random: TypeAlias = jax.Array

_AT = "@"


@dataclass(frozen=True)
class Codec:
    """A rule by which an array is stored in fewer bytes, and read again.

    Codecs are values: two of equal options are equal, hashable, and of one ``name``, which stands
    beside whatever they encoded. Each documents what ``encode`` stores, its bytes, and how much of
    an array a round trip keeps.
    """

    @property
    def name(self) -> str:
        """Says all that is needed to read what it stored: no other codec has this name."""
        raise NotImplementedError

    @property
    def is_random(self) -> bool:
        """Whether ``encode`` needs random numbers."""
        return False

    def shapes(self, shape: Shape) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns what ``encode`` stores for an array of a shape."""
        raise NotImplementedError

    def encode(self, x: jax.Array, random: Random | None = None) -> Parts:
        """Stores an array.

        Args:
          x: floating point, any shape.
          random: a PRNG key, or the random numbers of the shape in which they are used, where the
            codec rounds or chooses at random.

        Returns:
          Arrays by name, of the ``shapes``.
        """
        raise NotImplementedError

    def decode(self, parts: Mapping[str, jax.Array], shape: Shape) -> jax.Array:
        """Returns the float32 array of a shape that ``encode`` stored."""
        raise NotImplementedError

    def contraction(self, x: jax.Array) -> jax.Array:
        """Returns a ``delta`` with ``norm(decode(encode(x)) - x)**2 <= (1-delta)*norm(x)**2``.

        It holds for this ``x``, or on average over the random numbers.
        """
        raise NotImplementedError

    def for_sign(self, signed: bool) -> "Codec":
        """Returns this codec for values of both signs, or for values that are not negative."""
        del signed
        return self

    def bytes(self, shape: Shape) -> int:
        """Returns the bytes that an array of a shape takes."""
        parts = self.shapes(shape).values()
        return sum(math.prod(part.shape) * part.dtype.itemsize for part in parts)

    def round_trip(self, x: jax.Array, random: Random | None = None) -> jax.Array:
        """Returns what is read after ``x`` was stored, in float32."""
        return self.decode(self.encode(x, random), x.shape)


def stored(codec: Codec, parts: Mapping[str, jax.Array]) -> Parts:
    """Returns the parts under names that tell which codec they are of: ``codes@NAME``."""
    return {f"{part}{_AT}{codec.name}": value for part, value in parts.items()}


def is_stored_name(name: Any) -> bool:
    """Tells whether a key of a dict is one of ``stored``."""
    return isinstance(name, str) and _AT in name


def is_stored(node: Any) -> bool:
    """Tells whether a node of a tree is what ``stored`` gives."""
    # A Mapping: flax.nnx hands the dicts of an optimizer's state back as its own.
    return isinstance(node, Mapping) and bool(node) and all(map(is_stored_name, node))


def codec_name(node: Mapping[str, Any]) -> str:
    """Returns the name of the codec that stored a node."""
    return next(iter(node)).split(_AT, 1)[1]


def parts_of(node: Mapping[str, jax.Array]) -> Parts:
    """Returns the parts by their own names: undoes ``stored``."""
    return {name.split(_AT, 1)[0]: value for name, value in node.items()}


def uniforms(random: Random | None, shape: Shape, codec: Codec) -> jax.Array:
    """Returns float32 numbers in [0, 1): drawn from a key, or those that were given."""
    if random is None:
        raise ValueError(f"{codec.name} works at random: give encode a PRNG key")
    if jnp.issubdtype(random.dtype, jax.dtypes.prng_key):
        return jax.random.uniform(random, shape, jnp.float32)
    return jnp.asarray(random, jnp.float32).reshape(shape)


def divided(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a / b``, and 0 where ``b`` is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless a value is an integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r} must be an integer of at least 1")


def check_options(codec: Codec, **choices: Any) -> None:
    """Raises ValueError unless each attribute is one of its choices."""
    for name, allowed in choices.items():
        value = getattr(codec, name)
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")
