"""bfloat16 parameters: small steps are lost by rounding, unless a wrapper keeps them."""

import jax
import jax.numpy as jnp
import optax

import optkit

STEPS, RATE = 500, 2e-4


def main() -> None:
    """Fits one matrix in bfloat16 in three ways and prints loss and memory of each."""
    key_target, key_x = jax.random.split(jax.random.key(0))
    target = 1.0 + 0.05 * jax.random.normal(key_target, (32, 32))
    x = jax.random.normal(key_x, (128, 32))
    start = {"dense": {"kernel": jnp.ones((32, 32), jnp.bfloat16)}}

    def loss(params: dict) -> jax.Array:
        error = x @ (params["dense"]["kernel"].astype(jnp.float32) - target)
        return jnp.mean(error**2)

    adamw = optkit.adamw(RATE, weight_decay=0.0)
    runs = {
        # Rounded to nearest, a step below half the spacing of bfloat16 (0.4 % of 1) is no step.
        "adamw alone": adamw,
        "master_weights(adamw)": optkit.master_weights(adamw),
        "adamw, stochastic_round": optax.chain(
            optkit.in_float32(adamw), optkit.stochastic_round(0)
        ),
    }
    print(f"{'run':26}{'loss before':>12}{'after':>9}{'state bytes':>13}")
    after = {}
    for name, tx in runs.items():

        @jax.jit
        def train(params: dict, tx: optax.GradientTransformation = tx) -> dict:
            def step(carry: tuple, _: None) -> tuple:
                state, params = carry
                updates, state = tx.update(jax.grad(loss)(params), state, params)
                return (state, optax.apply_updates(params, updates)), None

            return jax.lax.scan(step, (tx.init(params), params), length=STEPS)[0][1]

        final = train(start)
        assert final["dense"]["kernel"].dtype == jnp.bfloat16
        after[name] = float(loss(final))
        size = optkit.plan(tx, start).state_bytes
        print(f"{name:26}{float(loss(start)):12.5f}{after[name]:9.5f}{size:13,}")
    plain, *kept = after.values()
    assert max(kept) < 0.5 * plain


if __name__ == "__main__":
    main()
