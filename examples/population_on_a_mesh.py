"""Populations over eight devices: each measures its members, and only fitnesses are exchanged."""

import os

# Before JAX starts; on real devices leave it out.
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import linen as nn  # noqa: E402

import optkit  # noqa: E402
from optkit.evolution import evaluate, explain, population_apply  # noqa: E402


class Network(nn.Module):
    """A step function between its layers, through which no gradient passes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(jnp.sign(nn.Dense(32)(x)))


def main() -> None:
    """Learns an ellipse; prints how members differ, and the loss."""
    mesh = jax.make_mesh((jax.device_count(),), ("members",))
    x = jax.random.normal(jax.random.key(0), (256, 2))
    y = jnp.sum(x**2 * jnp.array([[1.0, 0.25]]), axis=1, keepdims=True)
    params = Network().init(jax.random.key(1), x)
    es = optkit.eggroll(64, sigma=0.1).on_mesh(mesh)
    tx = optax.chain(es, optax.adam(0.03))

    def fitness(members: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        out = population_apply(Network().apply, members, x, in_axes=None)
        return -jnp.mean(jnp.square(out - y[None]), axis=(1, 2))

    @jax.jit
    def generation(params: dict, state: tuple) -> tuple:
        found = evaluate(es, fitness, params, state, x, y, in_axes=None)
        updates, state = tx.update(found, state, params)
        return optax.apply_updates(params, updates), state, -found.mean()

    print(explain(Network().apply, params, x))
    state, losses = tx.init(params), []
    for _ in range(60):
        params, state, loss = generation(params, state)
        losses.append(float(loss))
    print(f"loss over {mesh.size} devices: {losses[0]:.2f}, then {losses[-1]:.2f}")
    assert losses[-1] < 0.6 * losses[0]


if __name__ == "__main__":
    main()
