"""The same network trained with ever less optimizer state, and what each way costs in loss."""

import jax
import jax.numpy as jnp
import optax

import optkit

STEPS = 200


def main() -> None:
    """Fits a small network to a larger one; prints loss and state bytes of each optimizer."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (256, 64))

    def network(keys: jax.Array, width: int) -> dict:
        up, down = (jax.random.normal(k, (64, width)) / 8.0 for k in keys)
        return {"up": {"kernel": up}, "down": {"kernel": down.T * (64 / width) ** 0.5}}

    def apply(params: dict) -> jax.Array:
        return jax.nn.gelu(x @ params["up"]["kernel"]) @ params["down"]["kernel"]

    goal, start = apply(network(keys[1:3], 512)), network(keys[3:5], 256)

    def loss(params: dict) -> jax.Array:
        return jnp.mean(jnp.square(apply(params) - goal))

    rate = optax.cosine_decay_schedule(1e-2, STEPS)
    adamw = optkit.adamw(rate, weight_decay=0.0)
    runs = {
        "adamw": adamw,
        "quantize_state(adamw)": optkit.quantize_state(adamw),
        "adamw_4bit": optkit.adamw_4bit(rate, weight_decay=0.0),
        "galore_adamw, rank 16": optkit.galore_adamw(rate, rank=16, scale=1.0, refresh_every=50),
        "apollo, rank 16": optkit.apollo(rate, rank=16, refresh_every=50),
        "fp8 states, optax.adam": optkit.quantize_state(optax.adam(rate), "fp8"),
    }
    print(f"{'run':24}{'loss':>9}{'state bytes':>13}{'per parameter':>15}")
    count, after = sum(p.size for p in jax.tree.leaves(start)), {}
    for name, tx in runs.items():

        @jax.jit
        def train(params: dict, tx: optax.GradientTransformation = tx) -> dict:
            def step(carry: tuple, _: None) -> tuple:
                state, params = carry
                updates, state = tx.update(jax.grad(loss)(params), state, params)
                return (state, optax.apply_updates(params, updates)), None

            return jax.lax.scan(step, (tx.init(params), params), length=STEPS)[0][1]

        size = optkit.plan(tx, start).state_bytes
        after[name] = float(loss(train(start)))
        print(f"{name:24}{after[name]:9.5f}{size:13,}{size / count:15.2f}")
    assert after["quantize_state(adamw)"] < 1.2 * after["adamw"]


if __name__ == "__main__":
    main()
