"""Adapters of a trained network learn turned digits from right and wrong alone, by EGGROLL."""

import os

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optkit
from optkit.evolution import population_apply
from optkit.tasks import digits_data

GENERATIONS = int(os.environ.get("OPTKIT_EXAMPLE_STEPS", "200"))
WEIGHTS, ADAPTERS = ("**/kernel", "**/bias"), ("**/lora_a", "**/lora_b")


def main() -> None:
    """Trains weights by gradients, then adapters by rewards; prints the share of right answers."""
    data, rngs = digits_data.load(), nnx.Rngs(0)
    layers = [nnx.LoRALinear(64, size, lora_rank=4, rngs=rngs) for size in (64, 10)]
    graph, params = nnx.split(nnx.Sequential(layers[0], nnx.relu, layers[1]))
    images, labels = map(jnp.asarray, (data.train["images"], data.train["labels"]))

    def logits(params: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(images.reshape(-1, 64))

    def loss(params: nnx.State) -> jax.Array:
        out = logits(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(out, labels).mean()

    def train(_: int, carry: tuple) -> tuple:
        updates, state = trained.update(jax.grad(loss)(carry[1]), *carry)
        return state, optax.apply_updates(carry[1], updates)

    def evolve(index: jax.Array, carry: tuple) -> tuple:
        rows = jax.random.choice(jax.random.fold_in(jax.random.key(1), index), len(labels), (256,))
        members = es.perturb_lazy(carry[1], carry[0])
        turned = jnp.rot90(images[rows], 1, (1, 2))
        answers = population_apply(logits, members, turned, in_axes=None).argmax(-1)
        updates, state = evolved.update((answers == labels[rows][None]).mean(-1), *carry)
        return state, optax.apply_updates(carry[1], updates)

    def right(params: nnx.State) -> float:
        answers = logits(params, jnp.rot90(data.held_out["images"], 1, (1, 2))).argmax(-1)
        return float((answers == data.held_out["labels"]).mean())

    trained = optkit.freeze(ADAPTERS, optkit.adamw(3e-3))
    es = optkit.eggroll(128, sigma=0.1, frozen=WEIGHTS)
    evolved = optax.chain(es, optkit.freeze(WEIGHTS, optax.adam(0.03)))
    _, base = jax.lax.fori_loop(0, 150, train, (trained.init(params), params))
    _, tuned = jax.lax.fori_loop(0, GENERATIONS, evolve, (evolved.init(base), base))
    print(f"held-out turned digits: {right(base):.2f}, then {right(tuned):.2f} by rewards")
    assert right(tuned) > right(base) + 0.1


if __name__ == "__main__":
    main()
