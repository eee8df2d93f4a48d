"""Four replicas work on their own and meet every ten steps: a tenth of the bytes on the wire. Here
they are stacked on one device; with the leading axis sharded over a mesh each works on devices of
its own, to the same numbers.
"""

import jax
import numpy as np
import optax

import optkit
from optkit import tasks

REPLICAS, EVERY, ROUNDS = 4, 10, 6


def main() -> None:
    """Trains the mean model, and shows that replicas part and meet."""
    task = tasks.get("digits_linen", width=32, batch=32)
    inner = optkit.adamw(3e-3)
    outer = optkit.diloco(optax.sgd(0.7, momentum=0.9, nesterov=True))

    def step(carry: tuple, batch: dict) -> tuple:  # of one replica
        state, params = carry
        (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch)
        updates, state = inner.update(grads, state, params)
        return (state, optax.apply_updates(params, updates)), loss

    work = jax.jit(optkit.on_replicas(optkit.local_rounds(step, every=EVERY)))
    meet = jax.jit(outer.step)
    params = optkit.replicas(task.init(jax.random.key(0)), REPLICAS)
    state = optkit.on_replicas(inner.init)(params)  # never averaged
    held, losses = outer.init(params), []
    for index in range(ROUNDS):
        drawn = [
            task.batch(replica, index * EVERY + h)
            for replica in range(REPLICAS)
            for h in range(EVERY)
        ]
        batches = jax.tree.map(
            lambda *parts: np.stack(parts).reshape(REPLICAS, EVERY, *parts[0].shape), *drawn
        )
        (state, params), loss = work((state, params), batches)
        apart = max(float(np.ptp(p, axis=0).max()) for p in jax.tree.leaves(params))
        params, held = meet(params, held)
        losses.append(float(loss.mean()))
        print(f"round {index}: loss {losses[-1]:.3f}, replicas were {apart:.4f} apart and met")
    assert all((p == p[:1]).all() for p in jax.tree.leaves(params))
    assert losses[-1] < 0.5 * losses[0]


if __name__ == "__main__":
    main()
