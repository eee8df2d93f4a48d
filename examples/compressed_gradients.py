"""Eight workers (emulated on the CPU) average gradients through factors of rank 4."""

import os

# Before JAX starts; on real devices leave it out.
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

import optkit  # noqa: E402


def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of a network of one hidden layer."""
    return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)


def main() -> None:
    """Trains with and without compression and compares losses and what is sent."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    random = np.random.default_rng(0)
    draw = lambda *shape: np.float32(random.standard_normal(shape) / shape[0] ** 0.5)  # noqa: E731
    truth, start = ({"up": draw(32, 64), "down": draw(64, 16)} for _ in range(2))
    x = 32**0.5 * draw(64, 32)
    y = jnp.tanh(x @ truth["up"]) @ truth["down"]

    ends = {}
    for name, rate in (("plain", 1e9), ("rank 4", 1.0)):
        average = optkit.powersgd_mean("data", rank=4, min_compression_rate=rate)
        tx = optax.chain(average, optkit.adamw(3e-3))
        state, specs = optkit.init_workers(tx, start, mesh, "data")

        def step(state: tuple, params: dict, x: jax.Array, y: jax.Array, tx: object = tx) -> tuple:
            own = jax.lax.pcast(params, "data", to="varying")  # else JAX sums gradients itself
            updates, state = tx.update(jax.grad(loss)(own, x, y), state, params)
            return state, optax.apply_updates(params, updates)

        inside, outside = (specs, P(), P("data"), P("data")), (specs, P())
        train = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=inside, out_specs=outside))
        params = start
        for _ in range(40):
            state, params = train(state, params, x, y)
        ends[name] = float(loss(params, x, y))
        sent = optkit.wire_bytes(tx, params, workers=8).most
        print(f"{name}: loss {ends[name]:.3f}, {sent:,.0f} bytes a step from each worker")
    print(f"at the start: loss {float(loss(start, x, y)):.3f}")
    assert ends["plain"] < ends["rank 4"] < 0.2 * float(loss(start, x, y))


if __name__ == "__main__":
    main()
