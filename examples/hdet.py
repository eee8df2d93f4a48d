"""Four replicas try four learning rates at once; every twenty steps they are averaged, and their
losses move the rate for all. On one device, and with each replica on two devices of a mesh.
"""

import os

# Before JAX starts; on real devices leave it out.
FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}=8".strip()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

import optkit  # noqa: E402
from optkit import tasks  # noqa: E402

REPLICAS, STEPS = 4, 60


def main() -> None:
    """Starts at an eighth of the tuned rate, on one device and on eight."""
    task = tasks.get("digits", width=32, channels=0, batch=32)
    auto = optkit.AutoRate(total_steps=STEPS, shrink=1.0, loss_scale=0.02, momentum=0.5, gain=1.0)
    tx = optkit.hdet(optkit.adamw, 5e-4, axis_name="replica", alpha=0.5, every=20, auto=auto)

    def step(batch: dict, state: tuple, params: dict) -> tuple:  # of one replica
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params, loss=loss)
        return state, optax.apply_updates(params, updates), loss

    def train(mesh: jax.sharding.Mesh | None, steps: int) -> tuple:
        run = jax.jit(optkit.on_replicas(step, "replica", mesh))
        params = optkit.replicas(task.init(jax.random.key(0)), REPLICAS, noise=0.01)
        state = optkit.on_replicas(tx.init, "replica", mesh)(params)
        losses = []
        for index in range(steps):
            drawn = [task.batch(replica, index) for replica in range(REPLICAS)]
            batch = jax.tree.map(lambda *parts: np.stack(parts), *drawn)
            if mesh is not None:  # a replica's batch over the devices that it has
                batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("replica", "data")))
            state, params, loss = run(batch, state, params)
            losses.append(float(loss.mean()))
        return np.array(losses), np.asarray(optkit.hdet_value(state))

    types = (AxisType.Auto, AxisType.Auto)
    mesh = jax.make_mesh((REPLICAS, 2), ("replica", "data"), axis_types=types)
    (losses, rates), (same, _) = train(None, STEPS), train(mesh, 22)
    print(f"from 0.0005 the mean learning rate went to {rates.mean():.4f}, higher ones were better")
    print(f"the losses on one device and on eight: {losses[21]:.4f} and {same[21]:.4f}")
    assert rates.mean() > 8e-4
    np.testing.assert_allclose(losses[:22], same, atol=1e-4)


if __name__ == "__main__":
    main()
