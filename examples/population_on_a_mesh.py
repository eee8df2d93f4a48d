"""A population over all devices: each measures its own members, and only fitnesses are exchanged."""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import optkit
from optkit.evolution import evaluate, explain, population_apply

POPULATION, STEPS = 64, 60


class Network(nn.Module):
    """Layers of a step function, through which no gradient passes."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(jnp.sign(nn.Dense(32)(x)))


def main() -> None:
    """Learns an ellipse; prints how members differ, and the loss."""
    devices = jax.devices()[: min(8, jax.device_count())]
    mesh = jax.sharding.Mesh(devices, ("members",))
    x = jax.random.normal(jax.random.key(0), (256, 2))
    y = jnp.sum(x**2 * jnp.array([1.0, 0.25]), axis=1, keepdims=True)
    params = Network().init(jax.random.key(1), x)["params"]
    es = optkit.eggroll(POPULATION, sigma=0.1).on_mesh(mesh)
    tx = optax.chain(es, optax.adam(0.03))

    def model(params: dict, x: jax.Array) -> jax.Array:
        return Network().apply({"params": params}, x)

    def fitness(members: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        out = population_apply(model, members, x, in_axes=None)
        return -jnp.mean(jnp.square(out - y), axis=(1, 2))

    @jax.jit
    def generation(params: dict, state: tuple) -> tuple:
        found = evaluate(es, fitness, params, state, x, y)
        updates, state = tx.update(found, state, params)
        return optax.apply_updates(params, updates), state, -found.mean()

    print(explain(model, params, x))
    state, losses = tx.init(params), []
    for _ in range(STEPS):
        params, state, loss = generation(params, state)
        losses.append(float(loss))
    print(
        f"{len(devices)} devices, {POPULATION} members: loss {losses[0]:.2f}, then {losses[-1]:.2f}"
    )
    assert losses[-1] < 0.6 * losses[0]


if __name__ == "__main__":
    main()
