"""Eight devices (emulated on the CPU): parameters and state sharded, numbers as on one device."""

import os

# Before JAX starts; on real devices leave it out.
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

import optkit  # noqa: E402


def main() -> None:
    """Takes five Muon steps sharded and unsharded and compares them."""
    tx = optkit.muon(0.02)
    keys = jax.random.split(jax.random.key(0), 6)
    host = {f"layer_{i}": 0.1 * jax.random.normal(k, (64, 128)) for i, k in enumerate(keys)}
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=auto)
    placement = NamedSharding(mesh, PartitionSpec("data", "model"))

    @jax.jit
    def step(state: optax.OptState, params: dict) -> tuple[optax.OptState, dict]:
        gradients = jax.tree.map(lambda p: jnp.sin(10 * p), params)  # stands for a real gradient
        updates, state = tx.update(gradients, state, params)
        return state, optax.apply_updates(params, updates)

    def train(state: optax.OptState, params: dict) -> tuple[optax.OptState, dict]:
        for _ in range(5):
            state, params = step(state, params)
        return state, params

    expected = train(tx.init(host), host)[1]

    params = jax.device_put(host, placement)
    # Each moment is born where its parameter lives: no device ever holds the whole state.
    where = optkit.state_sharding(tx, params)
    state = jax.jit(tx.init, out_shardings=where)(params)
    state, params = train(state, params)

    def largest(one: dict, other: dict) -> float:
        gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, other)
        return max(jax.tree.leaves(gaps))

    local = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    moved, gap = largest(expected, host), largest(expected, jax.device_get(params))
    print(f"{jax.device_count()} devices, mesh {dict(mesh.shape)}")
    print(f"state: {optkit.tree.tree_bytes(state):,} bytes, {local:,} on the first device")
    print(f"parameters moved by {moved:.3f}; sharded and unsharded differ by {gap:.1e}")
    assert gap < 1e-4 < moved


if __name__ == "__main__":
    main()
