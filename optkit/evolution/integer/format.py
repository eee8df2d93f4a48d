"""Arithmetic of int8 networks: fixed point, saturation, and perturbations that stay integers.

A stored integer ``q`` stands for ``q / 2**fixed_point``. Numbers live in [-127, 127], so that minus
a number is one too; sums are int32. ``>>`` rounds towards minus infinity.
"""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

LIMIT = 127
FIXED_POINT = 4
SCORE_BITS = 4
# Bits that the mantissa of a sum is compared in, and 2**(j/16) in them for j in 1..15.
_MANTISSA = 31


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("base", "a", "b"), meta_fields=("shift",)
)
@dataclass(frozen=True)
class IntegerPerturbed:
    """An int8 parameter of pairs of members: what they share, and the noise of each pair.

    The first member of a pair adds the noise, the second one subtracts it. A matrix is never
    perturbed in full: its noise acts on what it is multiplied with, before the shift that rounds.
    Stacked layers have a leading axis in all three, before that of pairs.

    Attributes:
      base: int8, ``(out, in)`` of a matrix, ``(n,)`` of a vector.
      a: int8 ``(pairs, out, rank)`` of a matrix; of a vector int16 ``(pairs, n)``, its noise.
      b: int8 ``(pairs, in, rank)``; None of a vector.
      shift: bits that noise is shifted down by, ``fixed_point + sigma_shift``.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution.integer import IntegerPerturbed, vector
      >>> noise = jnp.array([[512, -512]], jnp.int16)
      >>> vector(IntegerPerturbed(jnp.array([16, 16], jnp.int8), noise, None, 8)).tolist()
      [[[18, 14], [14, 18]]]
    """

    base: jax.Array
    a: jax.Array
    b: jax.Array | None
    shift: int


Weight = jax.Array | IntegerPerturbed


def is_perturbed(x: object) -> bool:
    """Tells whether something is an ``IntegerPerturbed`` leaf."""
    return isinstance(x, IntegerPerturbed)


def saturate(x: jax.Array) -> jax.Array:
    """Returns integers as int8, those beyond +-127 as +-127.

    Args:
      x: integers of any shape.

    Returns:
      int8 of the same shape.
    """
    return jnp.clip(x, -LIMIT, LIMIT).astype(jnp.int8)


def _signed(x: jax.Array) -> jax.Array:
    """Puts plus and minus x, int32, on a new axis behind that of pairs."""
    wide = x.astype(jnp.int32)
    return jnp.stack([wide, -wide], axis=1)


def vector(weight: Weight) -> jax.Array:
    """Returns a vector of parameters, that of every member if it is perturbed.

    Args:
      weight: int8 ``(n,)``, or perturbed.

    Returns:
      int8 ``(n,)``, or ``(pairs, 2, n)``.
    """
    if not isinstance(weight, IntegerPerturbed):
        return weight
    base = weight.base.astype(jnp.int32)[None, None]
    return saturate(base + (_signed(weight.a) >> weight.shift))


def embed(weight: Weight, tokens: jax.Array) -> jax.Array:
    """Looks up rows of a matrix, those of each member if it is perturbed.

    Args:
      weight: int8 ``(rows, n)``, or perturbed.
      tokens: integers of any shape; ``(pairs, 2)`` if it is perturbed.

    Returns:
      int8 ``(*tokens.shape, n)``.
    """
    if not isinstance(weight, IntegerPerturbed):
        return weight[tokens]
    rows = weight.base[tokens].astype(jnp.int32)
    of_pair = jnp.arange(tokens.shape[0])[:, None]
    left = weight.a[of_pair, tokens].astype(jnp.int32)  # (pairs, 2, rank)
    left = left * jnp.array([1, -1], jnp.int32)[None, :, None]
    assert weight.b is not None, "a vector has no rows to look up"
    return saturate(rows + (_outer(left, weight.b) >> weight.shift))


def _outer(left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns ``sum_r left[p, k, r] * right[p, n, r]``, int32 (pairs, 2, n)."""
    wide = right.astype(jnp.int32)
    # A product with one or a few columns: no matrix product is as fast as this.
    terms = [left[:, :, None, r] * wide[:, None, :, r] for r in range(wide.shape[-1])]
    return functools.reduce(jnp.add, terms)


def linear(x: jax.Array, weight: Weight, *, fixed_point: int = FIXED_POINT) -> jax.Array:
    """Multiplies by a matrix, scales by one over the root of fan_in, and saturates.

    ``clip((W x + P) // (2**fixed_point * isqrt(fan_in)))``; ``P = (±A (B.x)) >> shift`` of a member
    whose noise has the factors A and B. No product of a member has more than one column a rank.

    Args:
      x: int8 ``(..., in)``; ``(pairs, 2, in)`` if the matrix is perturbed.
      weight: int8 ``(out, in)``, or perturbed.
      fixed_point: bits behind the point.

    Returns:
      int8 ``(..., out)``.
    """
    base = weight.base if isinstance(weight, IntegerPerturbed) else weight
    contracted = ((x.ndim - 1,), (1,))
    out = jax.lax.dot_general(x, base, (contracted, ((), ())), preferred_element_type=jnp.int32)
    if isinstance(weight, IntegerPerturbed):
        inner = jnp.einsum("pkn,pnr->pkr", x, weight.b, preferred_element_type=jnp.int32)
        inner = inner * jnp.array([1, -1], jnp.int32)[None, :, None]
        out = out + (_outer(inner, weight.a) >> weight.shift)
    return saturate(_floor_divide(out, 2**fixed_point * math.isqrt(base.shape[1])))


def _floor_divide(x: jax.Array, divisor: int) -> jax.Array:
    bits = divisor.bit_length() - 1
    return x >> bits if divisor == 1 << bits else x // divisor


def add(*terms: jax.Array) -> jax.Array:
    """Adds int8 arrays and saturates once.

    Args:
      *terms: int8, of one shape.

    Returns:
      int8 of that shape.
    """
    return saturate(functools.reduce(jnp.add, [x.astype(jnp.int32) for x in terms]))


def norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Divides by the mean of absolute values, rounded down, and multiplies by a vector.

    ``clip((x * w) // max(1, sum|x| // n))``. The reference looks quotients up in a table of
    256 x 65536 entries, whose row for a mean below 1 holds quotients of a division by zero: here
    the divisor is at least 1.

    Args:
      x: int8 ``(..., n)``.
      weight: int8 ``(n,)``, or of any shape that broadcasts to ``x``.

    Returns:
      int8 ``(..., n)``.
    """
    total = jnp.sum(jnp.abs(x.astype(jnp.int32)), axis=-1, keepdims=True, dtype=jnp.int32)
    mean = total // x.shape[-1]
    product = x.astype(jnp.int32) * jnp.broadcast_to(weight.astype(jnp.int32), x.shape)
    return quotient(product, jnp.maximum(mean, 1))


def quotient(product: jax.Array, divisor: jax.Array) -> jax.Array:
    """Returns ``product // divisor``, saturated, of integers up to 127**2 and of 1 to 127.

    Args:
      product: int32 ``(..., n)``.
      divisor: int32 ``(..., 1)``.

    Returns:
      int8, shape of ``product``.
    """
    # Of integers |p| <= 127**2 and 1 <= d <= 127, (p + 1/2) / d is at least 1/(2d) away from any
    # integer: a share of 3e-5 of its size, so that the roundings of float32 (2e-7) change no
    # floor. CPUs divide no vectors of integers.
    inverse = 1.0 / divisor.astype(jnp.float32)
    return saturate(jnp.floor((product.astype(jnp.float32) + 0.5) * inverse).astype(jnp.int32))


def exp2_table(score_bits: int = SCORE_BITS) -> np.ndarray:
    """Returns ``floor(2**(b + k/2**b))`` for k in 0..255: what a logit of ``k - 128`` weighs.

    Args:
      score_bits: b, bits behind the point of logits and scores.

    Returns:
      int32 ``(256,)``.
    """
    return np.floor(np.exp2(np.arange(256) / 2**score_bits) * 2**score_bits).astype(np.int32)


def log2_of(total: jax.Array, *, score_bits: int = SCORE_BITS) -> jax.Array:
    """Returns ``floor(2**b * log2(total / 2**b))`` of integers, exactly.

    The reference has a table of 2**28 entries (1 GiB). Here: the place of the highest bit, and how
    many of ``2**(j/2**b)`` the rest reaches, compared as integers of 32 bits.

    Args:
      total: int32, at least ``2**score_bits``.
      score_bits: b.

    Returns:
      int32 of the same shape.
    """
    steps = 2**score_bits
    zeros = jax.lax.clz(total)
    mantissa = total.astype(jnp.uint32) << zeros.astype(jnp.uint32)
    # Irrational, so that no integer lies on a boundary; exp2 of float64 is exact to 2**-52.
    bounds = np.ceil(np.exp2(_MANTISSA + np.arange(1, steps) / steps)).astype(np.uint32)
    bounds = jnp.asarray(bounds.reshape(*[1] * total.ndim, -1))
    reached = jnp.sum(mantissa[..., None] >= bounds, axis=-1, dtype=jnp.int32)
    return steps * (_MANTISSA - zeros - score_bits) + reached


def log2_likelihood(
    logits: jax.Array, target: jax.Array, *, score_bits: int = SCORE_BITS
) -> jax.Array:
    """Returns the log-likelihood of a byte to the base 2, in units of ``2**-score_bits`` bit.

    ``(logit[target] + 128) - floor(2**b log2(S / 2**b))``, S the sum of ``exp2_table`` at all
    logits. Base 2 as logits have ``score_bits`` bits behind the point.

    Args:
      logits: int8 ``(..., vocabulary)``.
      target: integers ``(...)``.
      score_bits: b.

    Returns:
      int32 ``(...)``, at most 0 but for rounding.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution.integer import log2_likelihood
      >>> log2_likelihood(jnp.zeros(256, jnp.int8), jnp.array(7)).item() / 16  # 8 bits a byte
      -8.0
    """
    # logit + 128 as eight unsigned bits, so that every index is one of the table.
    index = jax.lax.bitcast_convert_type(logits, jnp.uint8) ^ jnp.uint8(128)
    weights = jnp.take(jnp.asarray(exp2_table(score_bits)), index, mode="clip")
    total = jnp.sum(weights, axis=-1, dtype=jnp.int32)
    chosen = jnp.take_along_axis(index, target[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return chosen.astype(jnp.int32) - log2_of(total, score_bits=score_bits)
