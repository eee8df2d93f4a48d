"""Sparse fine-tuning: 5% of the weights learn a new task, chosen by four rules, and by none."""

import functools

import jax
import jax.numpy as jnp
import optax

import optkit
from optkit import masks, tasks
from optkit.tasks import digits_data

STEPS, SHARE = 100, 0.05


def turned(batch: dict) -> dict:
    """Returns images turned by a quarter: the new task."""
    return {**batch, "images": jnp.rot90(batch["images"], axes=(1, 2))}


def main() -> None:
    """Trains on digits, then on turned ones; prints what each rule learns, forgets and stores."""
    task = tasks.get("digits")
    new = turned(old := digits_data.load().held_out)
    loss = jax.jit(lambda params, batch: task.loss(params, batch)[0])

    @functools.partial(jax.jit, static_argnums=0)
    def step(tx: optax.GradientTransformation, state: tuple, params: dict, batch: dict) -> tuple:
        updates, state = tx.update(jax.grad(loss)(params, batch), state, params)
        return state, optax.apply_updates(params, updates)

    def train(tx: optax.GradientTransformation, params: dict, view: object) -> tuple:
        state = tx.init(params)
        for index in range(STEPS):
            state, params = step(tx, state, params, view(task.batch(0, index)))
        return state, params

    _, start = train(optkit.adamw(3e-3), task.init(jax.random.key(0)), dict)
    print(f"before: loss of the old task {loss(start, old):.3f}, of the new {loss(start, new):.3f}")

    adam = optkit.adamw(1e-2)
    rules = {
        "all weights": adam,
        "lift": optkit.lift(1e-2, b2=0.999, rank=2, filter_rank=8, interval=40, rest="freeze"),
        "id3": optkit.id3(1e-2, budget=SHARE, steps=STEPS // 2),
        "magnitude": optkit.update_mask(adam, masks.magnitude(SHARE, where="**"), state="drop"),
        "random": optkit.update_mask(adam, masks.random(SHARE, where="**"), state="drop"),
    }
    for name, tx in rules.items():
        state, params = train(tx, start, turned)
        moved = sum(jax.tree.leaves(jax.tree.map(lambda a, b: int((a != b).sum()), start, params)))
        share, size = moved / task.parameters, optkit.tree.tree_bytes(state)
        print(f"{name:12} loss: new {loss(params, new):.3f}, old {loss(params, old):.3f};", end=" ")
        print(f"{share:4.0%} of the weights moved, {size} bytes of state")
        assert loss(params, new) < 0.5 * loss(start, new), name


if __name__ == "__main__":
    main()
