"""The fitness of a whole population of byte models, some pairs at a time."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.evolution.integer.egg import IntegerStrategy
from optkit.evolution.integer.format import FIXED_POINT, SCORE_BITS
from optkit.evolution.integer.model import Params, egg_scores


def egg_fitness(
    es: IntegerStrategy,
    params: Params,
    state: Any,
    tokens: jax.Array,
    hidden: jax.Array,
    *,
    together: int | None = None,
    fixed_point: int = FIXED_POINT,
    score_bits: int = SCORE_BITS,
) -> tuple[jax.Array, jax.Array]:
    """Scores all members of a population; no more noise is alive than that of some pairs.

    The same numbers as ``egg_scores(es.perturb(params, state), tokens, hidden)``.

    Args:
      es: ``optkit.egg``.
      params: int8 parameters of ``egg_init``.
      state: state of ``es``, or of a chain that has it.
      tokens: uint8 ``(streams, length + 1)``, each read by ``members / streams`` neighbours.
      hidden: int8 ``(members, layers, width)``.
      together: pairs at a time, a divisor of their number; None for all at once.
      fixed_point: bits behind the point.
      score_bits: bits behind the point of scores.

    Returns:
      int32 ``(members,)``, to be maximised, and the new hidden state.

    Raises:
      ValueError: numbers that do not divide each other.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> from optkit.evolution.integer import egg_fitness, egg_hidden, egg_init
      >>> es, params = optkit.egg(8), egg_init(jax.random.key(0), width=4, layers=1)
      >>> text = jnp.zeros((4, 3), jnp.uint8)
      >>> state, hidden = es.init(params), egg_hidden(params, 8)
      >>> scores, _ = egg_fitness(es, params, state, text, hidden, together=2)
      >>> scores.shape
      (8,)
    """
    members, streams = es.population, tokens.shape[0]
    size = members // 2 if together is None else together
    if members % streams or size < 1 or (members // 2) % size or hidden.shape[0] != members:
        raise ValueError(
            f"{members} members can't be cut into chunks of together={together} pairs with "
            f"{streams} streams and states of {hidden.shape[0]}; give divisors, a state each"
        )
    chunks = members // (2 * size)
    given = jnp.repeat(tokens, members // streams, axis=0)

    def chunk(part: Any) -> tuple[jax.Array, jax.Array]:
        pairs, tokens, hidden = part
        population = es.perturb(params, state, pairs)
        return egg_scores(
            population, tokens, hidden, fixed_point=fixed_point, score_bits=score_bits
        )

    pairs = jnp.arange(members // 2, dtype=jnp.int32)
    if chunks == 1:
        return chunk((pairs, given, hidden))
    parts = [x.reshape(chunks, -1, *x.shape[1:]) for x in (pairs, given, hidden)]
    scores, after = jax.lax.map(chunk, tuple(parts))
    return scores.reshape(members), after.reshape(hidden.shape)
