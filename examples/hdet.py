"""Four replicas try four learning rates at once; every twenty steps they are averaged, and their
losses move the rate for all. With a mesh of an axis "replica", ``on_replicas(..., mesh)``, each
replica trains on devices of its own, to the same numbers.
"""

import jax
import numpy as np
import optax

import optkit
from optkit import tasks

REPLICAS, STEPS = 4, 60


def main() -> None:
    """Starts at an eighth of the tuned rate."""
    task = tasks.get("digits_linen", width=32, batch=32)
    auto = optkit.AutoRate(total_steps=STEPS, shrink=1.0, loss_scale=0.02, momentum=0.5, gain=1.0)
    tx = optkit.hdet(optkit.adamw, 5e-4, axis_name="replica", alpha=0.5, every=20, auto=auto)

    def step(batch: dict, state: tuple, params: dict) -> tuple:  # of one replica
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        updates, state = tx.update(grads, state, params, loss=loss)
        return state, optax.apply_updates(params, updates), loss

    run = jax.jit(optkit.on_replicas(step, "replica"))
    params = optkit.replicas(task.init(jax.random.key(0)), REPLICAS, noise=0.01)
    state, losses = optkit.on_replicas(tx.init, "replica")(params), []
    for index in range(STEPS):
        drawn = [task.batch(replica, index) for replica in range(REPLICAS)]
        batch = jax.tree.map(lambda *parts: np.stack(parts), *drawn)
        state, params, loss = run(batch, state, params)
        losses.append(float(loss.mean()))
    rates = np.asarray(optkit.hdet_value(state))
    print(f"from 0.0005 the mean learning rate went to {rates.mean():.4f}, higher ones were better")
    print(f"the mean loss of four replicas: {losses[0]:.2f}, then {losses[-1]:.2f}")
    assert rates.mean() > 8e-4


if __name__ == "__main__":
    main()
