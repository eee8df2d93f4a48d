"""What crosses a network: the sign of each pair's difference, five of them in a byte."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.strategy import fitness_vector

_DIGITS = 5  # 3**5 = 243 of the 256 values of a byte


def pair_signs(fitness: Any, population: int, *, maximize: bool = True) -> jax.Array:
    """Returns which member of each pair is the fitter one.

    Args:
      fitness: ``(population,)``, integers or floats; integers are compared as such. NaN is worse
        than any number. Or int8 ``(population // 2,)``, the signs themselves.
      population: number of members.
      maximize: whether larger is better.

    Returns:
      int8 ``(population // 2,)``: 1 where the first is fitter, -1 where the second is, 0 for a tie.

    Raises:
      ValueError: they are of another length.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution.integer import pair_signs
      >>> pair_signs(jnp.array([3, 5, 2, 2]), 4).tolist()
      [-1, 0]
    """
    given = fitness["fitness"] if isinstance(fitness, dict) else fitness
    given = jnp.asarray(given)
    if given.dtype == jnp.int8 and given.shape == (population // 2,):
        return given
    checked = fitness_vector(given, population)
    if jnp.issubdtype(given.dtype, jnp.floating):
        worst = -jnp.inf if maximize else jnp.inf
        given = jnp.where(jnp.isnan(checked), worst, checked)
    first, second = given.reshape(-1, 2).T
    signs = (first > second).astype(jnp.int8) - (first < second).astype(jnp.int8)
    return signs if maximize else -signs


def pack_ternary(signs: jax.Array) -> jax.Array:
    """Packs numbers of -1, 0 and 1, five in a byte: ``sum_k (t_k + 1) * 3**k``.

    Args:
      signs: integers ``(n,)``.

    Returns:
      uint8 ``(ceil(n / 5),)``: 1.6 bits a number.

    Raises:
      ValueError: more than one axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.evolution.integer import pack_ternary, unpack_ternary
      >>> packed = pack_ternary(jnp.array([1, -1, 0, 0, 1, -1], jnp.int8))
      >>> packed.tolist(), unpack_ternary(packed, 6).tolist()
      ([200, 120], [1, -1, 0, 0, 1, -1])
    """
    if signs.ndim != 1:
        raise ValueError(f"signs of shape {signs.shape} must have one axis; reshape them to (-1,)")
    filled = jnp.pad(signs.astype(jnp.int32), (0, -signs.shape[0] % _DIGITS)) + 1
    powers = jnp.array([3**k for k in range(_DIGITS)], jnp.int32)
    return jnp.sum(filled.reshape(-1, _DIGITS) * powers[None], axis=-1).astype(jnp.uint8)


def unpack_ternary(packed: jax.Array, count: int) -> jax.Array:
    """Undoes ``pack_ternary``.

    Args:
      packed: uint8 ``(bytes,)``.
      count: how many numbers there are, at most ``5 * bytes``.

    Returns:
      int8 ``(count,)``.

    Raises:
      ValueError: fewer bytes than the numbers take.
    """
    if packed.shape[0] * _DIGITS < count:
        raise ValueError(f"{packed.shape[0]} bytes hold fewer than count={count} numbers")
    powers = jnp.array([3**k for k in range(_DIGITS)], jnp.int32)
    digits = (packed.astype(jnp.int32)[:, None] // powers[None]) % 3 - 1
    return digits.reshape(-1)[:count].astype(jnp.int8)
