"""Adapters of rank 4 learn turned digits on frozen weights: LoRA, its rivals, and all weights."""

import functools

import jax
import optax
from flax import nnx

import optkit
from optkit.tasks import digits_data

STEPS, RATES = 120, (1e-3, 3e-3, 1e-2, 3e-2)
METHODS = {
    "all weights": lambda rate: optkit.freeze(("lora_a", "lora_b"), optkit.adamw(rate)),
    "lora": lambda rate: optkit.lora_plus(rate, ratio=1.0),
    "lora_pro": optkit.lora_pro,
    "altlora_plus": lambda rate: optkit.altlora_plus(rate, schedule="joint"),
}


class Model(nnx.Module):
    """A perceptron with an adapter on each layer; an adapter's B is 0 at first."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        make = functools.partial(nnx.LoRALinear, lora_rank=4, rngs=rngs)
        self.input, self.hidden, self.head = make(64, 64), make(64, 64), make(64, 10)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.hidden(nnx.relu(self.input(images.reshape(-1, 64))))))


def main() -> None:
    """Trains weights on digits, then adapters on turned ones; prints losses and bytes of state."""
    data, (graph, start) = digits_data.load(), nnx.split(Model(nnx.Rngs(0)))

    def loss(params: nnx.State, part: dict, turns: int) -> jax.Array:
        logits = nnx.merge(graph, params)(jax.numpy.rot90(part["images"], turns, axes=(1, 2)))
        return optax.softmax_cross_entropy_with_integer_labels(logits, part["labels"]).mean()

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def train(method: str, rate: float, params: nnx.State, turns: int) -> tuple:
        def step(_: int, carry: tuple) -> tuple:
            updates, state = tx.update(jax.grad(loss)(carry[1], data.train, turns), *carry)
            return state, optax.apply_updates(carry[1], updates)

        tx = METHODS[method](rate)
        state, params = jax.lax.fori_loop(0, STEPS, step, (tx.init(params), params))
        return loss(params, data.held_out, turns), optkit.tree.tree_bytes(state), params

    base = train("all weights", 3e-3, start, 0)[-1]
    print(f"held-out loss of turned digits {loss(base, data.held_out, 1):.3f}; then, of {RATES}:")
    for name in METHODS:
        after, held = min(train(name, rate, base, 1)[:2] for rate in RATES)
        print(f"{name:13} {after:.3f} at the best rate, with {held} bytes of state")
        assert after < 0.5, name


if __name__ == "__main__":
    main()
