"""Private training: no weight tells much of any one image, and a number says how much.

Each image is drawn by itself at every step (``PoissonBatches``), its gradient clipped, noise added
to the sum. What follows is any optimizer, here Lion. The seeds here are for all to see; a model
that leaves the house wants secret ones.
"""

import os

import jax
import optax

import optkit
from optkit import privacy, tasks
from optkit.tasks import digits_data

STEPS = int(os.environ.get("OPTKIT_EXAMPLE_STEPS", "150"))
NOISE, DELTA, BATCH = 1.0, 1e-5, 128


def main() -> None:
    """Trains a perceptron on digits, and prints what that cost."""
    task = tasks.get("digits_linen", width=32)
    images = digits_data.load().train
    batches = privacy.PoissonBatches(len(images["labels"]), BATCH, seed=0)

    def loss(params: dict, image: dict) -> jax.Array:  # of one image
        return task.loss(params, jax.tree.map(lambda x: x[None], image))[0]

    gradient = privacy.private_gradient(
        loss, clip=1.0, noise_multiplier=NOISE, expected_batch=BATCH, microbatch=64
    )
    tx = optkit.lion(optax.linear_schedule(5e-3, 0.0, STEPS))

    @jax.jit
    def step(params: dict, state: tuple, batch: dict, mask: jax.Array) -> tuple:
        optimizer, noises = state
        grads, noises = gradient(params, batch, noises, mask=mask)
        updates, optimizer = tx.update(grads, optimizer, params)
        return optax.apply_updates(params, updates), (optimizer, noises)

    params = task.init(jax.random.key(0))
    state = (tx.init(params), gradient.init(1))
    before = float(task.evaluate(params)["error"])
    for index in range(STEPS):
        params, state = step(params, state, *batches.take(index, images))
    after = float(task.evaluate(params)["error"])
    spent = gradient.epsilon(batches.examples, STEPS, DELTA)
    print(f"{STEPS} steps, {NOISE} times the length in noise: epsilon {spent:.2f} at delta {DELTA}")
    print(f"errors on held-out images: {before:.2f}, then {after:.2f}")
    assert after < before - 0.2


if __name__ == "__main__":
    main()
