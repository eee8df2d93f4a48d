"""Chaining: a cautious mask around Optax's Lion direction, in a plain Flax NNX training loop."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import optkit


class Net(nnx.Module):
    """Two dense layers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = nnx.Linear(8, 64, rngs=rngs)
        self.head = nnx.Linear(64, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(jax.nn.gelu(self.up(x)))


def main() -> None:
    """Fits a small network and prints what the optimizer keeps and how the loss falls."""
    x = jax.random.normal(jax.random.key(0), (256, 8))
    y = jnp.sin(x.sum(axis=1, keepdims=True))

    # --- the twelve lines -------------------------------------------------------------------------
    model = Net(nnx.Rngs(0))
    direction = optkit.cautious(optax.scale_by_lion(b1=0.9, b2=0.99))
    tx = optkit.descend(direction, learning_rate=3e-3, weight_decay=0.01)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: nnx.Optimizer) -> jax.Array:
        loss, gradients = nnx.value_and_grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(200)]
    # ----------------------------------------------------------------------------------------------

    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    print(optkit.plan(tx, params))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps")
    assert losses[-1] < 0.5 * losses[0]


if __name__ == "__main__":
    main()
