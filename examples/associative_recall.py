"""Associative recall: a memory written at test time, by Muon or by the bare gradient (LaCT)."""

import os

import jax
import jax.numpy as jnp
import optax

import optkit

KEYS, PAIRS, CHUNK, SIZE, BATCH = 64, 256, 64, 32, 8
STEPS = int(os.environ.get("OPTKIT_EXAMPLE_STEPS", "100"))


def draw(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """256 pairs, a few keys often and many seldom, then each key; and which of them were shown."""
    often, first, values = jax.random.split(key, 3)
    zipf = (KEYS ** jax.random.uniform(often, PAIRS) - 1.0).astype(int)
    pairs = (zipf + jax.random.randint(first, (), 0, KEYS)) % KEYS
    keys = jnp.concatenate([pairs, jnp.arange(KEYS)])
    return keys, jax.random.randint(values, KEYS, 0, KEYS)[keys], jnp.isin(jnp.arange(KEYS), pairs)


def loss_of(params, keys, values, seen, muon):  # and the share of right answers
    k, v, head = params["tables"][0][keys], params["tables"][1][values], params["tables"][2].T
    k = k / jnp.linalg.norm(k, axis=-1, keepdims=True)
    lr = tuple(jnp.full((*keys.shape, 1), rate) for rate in jnp.exp(5 * params["rates"]))
    # The keys asked for are the last chunk, which is read only: their values are not written.
    read = optkit.lact(params["fast"], k, k, v, lr, chunk_size=CHUNK, muon=muon, prenorm=True)
    logits = (read / jnp.linalg.norm(read, axis=-1, keepdims=True) @ head)[:, PAIRS:]
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, values[:, PAIRS:])
    return jnp.mean(loss, where=seen), jnp.mean(logits.argmax(-1) == values[:, PAIRS:], where=seen)


def train(params, muon, tx):
    def step(carry, seed):
        data = jax.vmap(draw)(jax.random.split(jax.random.key(seed), BATCH))
        (_, right), grads = jax.value_and_grad(loss_of, has_aux=True)(carry[1], *data, muon)
        updates, state = tx.update(grads, *carry)
        return (state, optax.apply_updates(carry[1], updates)), right

    return jax.lax.scan(step, (tx.init(params), params), jnp.arange(STEPS))[1]


def main() -> None:
    tx, whole = optkit.adamw(0.02), []
    fast = optkit.fast_weights.draw_fast_weights(jax.random.key(0), SIZE, 2 * SIZE, SIZE)
    tables = jax.random.normal(jax.random.key(1), (3, KEYS, SIZE))
    for muon, rates in ((True, (0.01,) * 3), (False, (1.0,) * 3), (False, (0.01, 1.0, 0.01))):
        params = {"fast": fast, "tables": tables, "rates": jnp.log(jnp.array(rates)) / 5}
        right = jax.jit(train, static_argnums=(1, 2))(params, muon, tx)
        whole.append(float(right.mean()))
        end = f"{whole[-1]:.1%} over the training, {right[-10:].mean():.1%} at its end"
        print(f"muon={muon!s:6} first rates {rates!s:19} recalled {end}")
    assert whole[0] > max(whole[1:]), whole  # at the end well chosen rates catch up


if __name__ == "__main__":
    main()
