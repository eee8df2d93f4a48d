"""One of several processes that train a population together; prints what it ends with.

``python -m tests.evolution.run_process PROCESSES INDEX PORT DEVICES``
"""

import hashlib
import os
import sys

PROCESSES, INDEX, PORT, DEVICES = map(int, sys.argv[1:])
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.experimental import multihost_utils  # noqa: E402

import optkit  # noqa: E402
from optkit.evolution import evaluate, population_apply  # noqa: E402


def main() -> None:
    if PROCESSES > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{PORT}", PROCESSES, INDEX)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("members",))
    es = optkit.eggroll(16, sigma=0.1, key=3).on_mesh(mesh)
    tx = optax.chain(es, optax.adam(0.05))
    data = np.linspace(-1.0, 1.0, 6, dtype=np.float32)

    def fitness(population: dict[str, jax.Array], x: jax.Array) -> jax.Array:
        model = lambda params, x: jnp.tanh(x @ params["kernel"]) + params["bias"]  # noqa: E731
        out = population_apply(model, population, x, in_axes=None)
        return -jnp.sum((out - 0.5) ** 2, axis=-1)

    @jax.jit
    def generation(params, state, x):
        found = evaluate(es, fitness, params, state, x, in_axes=None)
        updates, state = tx.update(found, state, params)
        return optax.apply_updates(params, updates), state, found

    params = {"kernel": np.ones((6, 4), np.float32) / 3, "bias": np.zeros(4, np.float32)}
    whole = jax.sharding.PartitionSpec()
    if PROCESSES > 1:
        params, data = multihost_utils.host_local_array_to_global_array((params, data), mesh, whole)
    state = jax.jit(tx.init)(params)
    for _ in range(3):
        params, state, found = generation(params, state, data)
    ended = [np.asarray(x.addressable_shards[0].data) for x in jax.tree.leaves((params, found))]
    digest = hashlib.sha256(b"".join(x.tobytes() for x in ended)).hexdigest()
    print(len(jax.devices()), digest, flush=True)


if __name__ == "__main__":
    main()
