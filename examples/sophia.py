"""Sophia-G: curvature from the logits of a Flax model, computed in every tenth step only."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import optkit


class Classifier(nn.Module):
    """Two layers."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(nn.gelu(nn.Dense(32)(x)))


def main() -> None:
    """Trains with a ready estimate, and reads how much of each step is clipped."""
    x = jax.random.normal(jax.random.key(0), (256, 8))
    labels = jnp.argmax(x[:, :4] + x[:, 4:], axis=1)
    model = Classifier()
    params = model.init(jax.random.key(1), x)
    tx = optkit.sophia_g(1e-2, rho=1.0, weight_decay=0.0, monitor=True)
    state, computed = tx.init(params), []

    @jax.jit
    def step(state: Any, params: Any) -> tuple[Any, Any, jax.Array]:
        def loss_of(params: Any) -> jax.Array:
            logits = model.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def logits_of(params: Any, inputs: jax.Array) -> Any:
            jax.debug.callback(lambda: computed.append(1))  # to show when; leave it out
            return model.apply(params, inputs)

        loss, grads = jax.value_and_grad(loss_of)(params)
        # A fraction of the batch suffices for curvature.
        curvature = optkit.curvature.gauss_newton_bartlett(logits_of, x[:64])
        updates, state = tx.update(grads, state, params, curvature=curvature)
        return state, optax.apply_updates(params, updates), loss

    losses = []
    for _ in range(60):
        state, params, loss = step(state, params)
        losses.append(float(loss))
    jax.effects_barrier()
    rate = float(optax.tree.get(state, "win_rate"))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}; {rate:.0%} of the entries not clipped")
    assert len(computed) == 5 and losses[-1] < 0.3 * losses[0]


if __name__ == "__main__":
    main()
