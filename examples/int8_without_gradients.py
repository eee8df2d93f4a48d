"""A language model of int8 numbers learns from the signs of pairs, without any gradient."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from optkit.evolution import integer

STEPS = int(os.environ.get("OPTKIT_EXAMPLE_STEPS", "300"))
MEMBERS, WIDTH, LENGTH = 256, 16, 16
TEXT = np.frombuffer(b"\0" + b"What can be said at all can be said clearly. " * 40, np.uint8)


def main() -> None:
    """Trains on a sentence; prints bits a byte before and after."""
    es = optkit.egg(MEMBERS, alpha=lambda step: 0.5 * (1.0 - step / STEPS) + 1e-3)
    tx = optax.chain(es, optax.scale(-1))  # the update is int8 and stays int8
    params = integer.egg_init(jax.random.key(0), width=WIDTH, layers=1)
    hidden = integer.egg_hidden(params, MEMBERS)
    state = tx.init(params)
    streams = np.arange(MEMBERS // 2) * 13 % (TEXT.size // 2)

    def read(step: int) -> jax.Array:
        places = streams[:, None] + step * LENGTH + np.arange(LENGTH + 1)
        return jnp.asarray(TEXT[places % TEXT.size])

    @jax.jit
    def update(state: tuple, params: dict, hidden: jax.Array, tokens: jax.Array) -> tuple:
        population = es.perturb(params, state)
        fitness, hidden = integer.egg_scores(population, tokens, hidden)
        # All that devices which share the work have to send: a fifth of a byte for each pair.
        sent = integer.pack_ternary(integer.pair_signs(fitness, MEMBERS))
        signs = integer.unpack_ternary(sent, MEMBERS // 2)
        updates, state = tx.update(signs, state, params)
        return state, optax.apply_updates(params, updates), hidden

    score = jax.jit(integer.egg_scores)

    def bits(params: dict) -> float:
        scores, _ = score(params, jnp.asarray(TEXT[None, :257]), integer.egg_hidden(params, 1))
        return integer.bits_per_byte(scores, 256)

    first = bits(params)
    for step in range(STEPS):
        state, params, hidden = update(state, params, hidden, read(step))
    kept, sent = sum(p.nbytes for p in jax.tree.leaves(params)), -(-MEMBERS // 2 // 5)
    print(f"{kept:,} bytes of parameters; all devices together send {sent} bytes an update")
    print(f"bits a byte: {first:.2f}, after {STEPS} updates {bits(params):.2f}")
    assert bits(params) < first - 1.0
    assert all(p.dtype == jnp.int8 for p in jax.tree.leaves(params))


if __name__ == "__main__":
    main()
