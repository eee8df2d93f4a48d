"""Flax Linen: numbered layers have no telling names, so a role rule says which one is the head."""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

import optkit


class Classifier(nn.Module):
    """Three layers that Linen calls Dense_0, Dense_1 and Dense_2."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 32):
            x = nn.gelu(nn.Dense(width)(x))
        return nn.Dense(4)(x)


def main() -> None:
    """Prints what Muon does with each layer, and trains them."""
    x = jax.random.normal(jax.random.key(0), (256, 8))
    labels = jnp.argmax(x[:, :4] + x[:, 4:], axis=1)

    model = Classifier()
    params = model.init(jax.random.key(1), x)["params"]
    # Without the rule the last layer is one more hidden matrix for Muon; as a head AdamW has it.
    tx = optkit.muon(0.02, adam_learning_rate=3e-3, roles=[("Dense_2/**", "head")])
    train_state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(train_state: TrainState) -> tuple[TrainState, jax.Array]:
        def loss_of(params: dict) -> jax.Array:
            logits = train_state.apply_fn({"params": params}, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = jax.value_and_grad(loss_of)(train_state.params)
        return train_state.apply_gradients(grads=gradients), loss

    losses = []
    for _ in range(100):
        train_state, loss = step(train_state)
        losses.append(float(loss))

    plan = optkit.plan(tx, params)
    print(plan)
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps")
    served = {row.path: row.method for row in plan.rows if row.path.endswith("kernel")}
    assert list(served.values()) == ["muon", "muon", "adamw"]
    assert losses[-1] < 0.2 * losses[0]


if __name__ == "__main__":
    main()
