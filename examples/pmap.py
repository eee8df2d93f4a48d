"""A loop written with jax.pmap: one word tells that devices hold whole leaves. New code takes jit.

Parameters and state are copied to every device, gradients averaged by name, and every device takes
the same step: a whole matrix is on each of them, so that Muon sees what it needs. It cannot tell
that from parts of a matrix, which it refuses: ``optkit.inside(tx, ())`` says so.
"""

import os

# Before JAX starts; on real devices leave it out.
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

import optkit  # noqa: E402


def loss(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error of a network of one hidden layer."""
    return jnp.mean((jnp.tanh(x @ params["up"]) @ params["down"] - y) ** 2)


def main() -> None:
    """Takes the same steps with and without pmap."""
    tx, devices = optkit.inside(optkit.muon(0.02), ()), jax.local_device_count()
    random = np.random.default_rng(0)
    draw = lambda *shape: np.float32(random.standard_normal(shape) / shape[0] ** 0.5)  # noqa: E731
    truth, params = ({"up": draw(32, 64), "down": draw(64, 16)} for _ in range(2))
    x = 32**0.5 * draw(64, 32)
    y = np.tanh(x @ truth["up"]) @ truth["down"]

    def step(state: tuple, params: dict, x: jax.Array, y: jax.Array, axis: str | None) -> tuple:
        gradients = jax.grad(loss)(params, x, y)
        if axis is not None:
            gradients = jax.lax.pmean(gradients, axis)
        updates, state = tx.update(gradients, state, params)
        return state, optax.apply_updates(params, updates)

    one = jax.jit(lambda *args: step(*args, None))
    each = jax.pmap(lambda *args: step(*args, "devices"), axis_name="devices")
    copies = lambda tree: jax.tree.map(lambda a: jnp.stack([a] * devices), tree)  # noqa: E731
    parts = [a.reshape(devices, -1, a.shape[-1]) for a in (x, y)]
    expected, found = (tx.init(params), params), (copies(tx.init(params)), copies(params))
    for _ in range(5):
        expected, found = one(*expected, x, y), each(*found, *parts)
    gap = max(float(jnp.abs(found[1][name] - expected[1][name][None]).max()) for name in params)
    print(f"{devices} devices; with and without pmap the parameters differ by {gap:.1e}")
    assert gap < 1e-5


if __name__ == "__main__":
    main()
