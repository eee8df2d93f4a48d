"""Normal numbers by counters alone: each one is a function of a key and of where it stands.

The bits are those of threefry-2x32 with 20 rounds, the function under ``jax.random``, of other
counters: the first word is the number of the draw, the second the place in it. So these are not the
streams of ``jax.random``. A pair of words becomes two numbers of the normal law by Box and Muller:
the radius ``sqrt(-2 log u)`` of 24 bits, at most 5.9, the angle of 27 bits. They stand 128 columns
apart, which is what the registers of a TPU hold beside each other.

All forms of an operation share this code. Bits are equal everywhere; the numbers are, where the
compilers round products and sums one by one, and elsewhere to the last bits.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Columns that a number's partner is away.
APART = 128
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_EIGHTH = math.pi / 4.0
# Places of a draw: the rest of the word tells factors and ranks apart.
_PLACE_BITS = 24
MOST_COLUMNS, MOST_RANK = 2 << _PLACE_BITS, (1 << (31 - _PLACE_BITS)) - 1


@partial(jax.tree_util.register_dataclass, data_fields=("key", "first"), meta_fields=("rank",))
@dataclass(frozen=True)
class Counters:
    """Low-rank noise that is not stored: its factors follow from a key and the numbers of pairs.

    Attributes:
      key: uint32 ``(2,)``, ``jax.random.key_data`` of a threefry key, another one for each leaf and
        step.
      first: int32 or uint32 scalar, the number of the first pair.
      rank: of the noise.

    Example:
      >>> import jax
      >>> from optkit.kernels.perturbed_matmul import Counters
      >>> noise = Counters(jax.random.key_data(jax.random.key(0)), 0, rank=1)
      >>> noise.factor("a", pairs=3, size=5).shape
      (3, 5, 1)
    """

    key: Any
    first: Any
    rank: int = 1

    def words(self) -> jax.Array:
        """Returns what kernels make the factors of: key and first pair, int32 ``(3,)``."""
        key = jnp.asarray(self.key, jnp.uint32).reshape(2)
        first = jnp.asarray(self.first, jnp.uint32).reshape(1)
        return jax.lax.bitcast_convert_type(jnp.concatenate([key, first]), jnp.int32)

    def __post_init__(self) -> None:
        if self.rank > MOST_RANK:
            raise ValueError(f"rank={self.rank}: counters tell up to {MOST_RANK} ranks apart")

    def factor(self, side: str, pairs: int, size: int) -> jax.Array:
        """Returns the left factor "a" or the right one "b", float32 ``(pairs, size, rank)``."""
        numbers = jnp.asarray(self.first, jnp.uint32) + jnp.arange(pairs, dtype=jnp.uint32)
        return factor_of(self.key, numbers, side, size, self.rank)


def factor_of(key: Any, numbers: jax.Array, side: str, size: int, rank: int) -> jax.Array:
    """Returns the factor of some pairs, float32 ``(pairs, size, rank)``.

    Args:
      key: uint32 ``(2,)``.
      numbers: of the pairs, uint32 ``(pairs,)``.
      side: "a" or "b".
      size: columns of a pair.
      rank: how many of them there are.
    """
    if size > MOST_COLUMNS:
        raise ValueError(f"{size} columns are more than {MOST_COLUMNS} that counters tell apart")
    key, pairs = jnp.asarray(key, jnp.uint32), numbers.shape[0]
    place = jnp.arange(-(-size // (2 * APART)) * APART, dtype=jnp.uint32)[None]
    ranks = []
    for each in range(rank):
        near, far = normals(key[0], key[1], numbers[:, None], place, stream(side, each))
        # Runs of 128 columns in turn.
        both = jnp.stack([x.reshape(pairs, -1, APART) for x in (near, far)], axis=2)
        ranks.append(both.reshape(pairs, -1)[:, :size])
    return jnp.stack(ranks, axis=2)


def stream(side: str, rank: Any) -> Any:
    """Returns what tells the places of a factor and rank from those of the others."""
    return (2 * rank + (side == "a")) << _PLACE_BITS


def normals(k0: Any, k1: Any, number: jax.Array, place: jax.Array, stream: int) -> Any:
    """Returns the numbers at ``place`` and those 128 columns on, float32.

    Args:
      k0: first word of the key, uint32.
      k1: its second word.
      number: of the draws, uint32.
      place: in a draw, uint32; ``column // 256 * 128 + column % 128``.
      stream: of the factor and the rank.
    """
    first, second = threefry(k0, k1, number, place + np.uint32(stream))
    unit = _as_float(first >> 8) * np.float32(2.0**-24) + np.float32(2.0**-25)
    radius = jnp.sqrt(np.float32(-2.0) * jnp.log(unit))
    x = _as_float((second << 3) >> 8) * np.float32(_EIGHTH * 2.0**-24)
    # An angle of the first eighth, and three bits that say in which eighth.
    cos, sin = _cos_sin(x)
    swapped = (second & np.uint32(1 << 29)) != 0
    one = _signed(jnp.where(swapped, sin, cos), second)
    other = _signed(jnp.where(swapped, cos, sin), second << 1)
    return radius * one, radius * other


def in_registers(words: Any) -> list[jax.Array]:
    """Returns ``Counters.words`` as a TPU's kernel reads them, uint32 ``(1, 1)`` each."""
    held = [jnp.full((1, 1), words[n], jnp.int32) for n in range(3)]
    return [jax.lax.bitcast_convert_type(word, jnp.uint32) for word in held]


def normals_at(words: Any, number: jax.Array, place: jax.Array, stream: Any) -> Any:
    """``normals``, as kernels count: from the first pair on, and in int32.

    Args:
      words: key and number of the first pair, uint32.
      number: of the draws from there on, int32.
      place: in a draw, int32.
      stream: of the factor and the rank; int32 if it is an array.
    """
    k0, k1, first = words
    if not isinstance(stream, int):
        place, stream = place + stream, 0  # the places' words have the bits free
    number, place = (jax.lax.bitcast_convert_type(v, jnp.uint32) for v in (number, place))
    return normals(k0, k1, number + first, place, stream)


def signs_of(x: jax.Array) -> jax.Array:
    """``jnp.sign`` by comparisons: Mosaic lowers that one only where it finds a TPU."""
    return jnp.where(x > 0, 1.0, jnp.where(x < 0, -1.0, 0.0))


def threefry(k0: Any, k1: Any, x0: jax.Array, x1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns two words for each counter of two, all uint32: threefry-2x32 with 20 rounds."""
    x0, x1 = jnp.broadcast_arrays(x0, x1)
    keys = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
    x0, x1 = x0 + keys[0], x1 + keys[1]
    for turn in range(5):
        for rotation in _ROTATIONS[turn % 2]:
            x0 = x0 + x1
            x1 = x0 ^ ((x1 << rotation) | (x1 >> (32 - rotation)))
        x0 = x0 + keys[(turn + 1) % 3]
        x1 = x1 + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return x0, x1


def runs(size: int) -> Iterator[tuple[int, int]]:
    """Yields the starts of runs of 256 columns, and their lengths."""
    for start in range(0, size, 2 * APART):
        yield start, min(2 * APART, size - start)


def _as_float(x: jax.Array) -> jax.Array:
    """Words below 2**24 as numbers, exactly."""
    return jax.lax.bitcast_convert_type(x, jnp.int32).astype(jnp.float32)


def _signed(x: jax.Array, bits: jax.Array) -> jax.Array:
    """Numbers with signs turned where the highest bit is set."""
    turned = jax.lax.bitcast_convert_type(x, jnp.uint32) ^ (bits & np.uint32(1 << 31))
    return jax.lax.bitcast_convert_type(turned, jnp.float32)


def _cos_sin(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine up to an eighth of the circle: series whose rest is below 3e-8."""
    square = x * x
    cos, sin = (jnp.full_like(x, 1.0 / math.factorial(power)) for power in (8, 9))
    for power in (6, 4, 2, 0):
        sign = -1.0 if power % 4 else 1.0
        cos = cos * square + np.float32(sign / math.factorial(power))
        sin = sin * square + np.float32(sign / math.factorial(power + 1))
    return cos, sin * x
