"""Inner steps in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optkit


@pytest.mark.slow
def test_a_round_is_its_steps_and_leaves_replicas_alone() -> None:
    tx = optax.adam(0.1)

    def step(carry: tuple, target: jax.Array) -> tuple:
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: jnp.sum((p - target) ** 2))(params)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), loss

    params = optkit.replicas(jnp.zeros(2), 3)
    state = optkit.on_replicas(tx.init)(params)
    targets = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4, 2)), jnp.float32)
    run = jax.jit(optkit.on_replicas(optkit.local_rounds(step, every=4)))
    (got, moments), losses = run((params, state), targets)
    assert losses.shape == (3, 4) and moments[0].count.tolist() == [4, 4, 4]
    for i in range(3):
        carry = (params[i], tx.init(params[i]))
        for target in targets[i]:
            carry, loss = step(carry, target)
        np.testing.assert_allclose(got[i], carry[0], rtol=1e-5)
        assert float(losses[i, -1]) == pytest.approx(float(loss), rel=1e-5)


def test_batches_of_another_number_are_refused() -> None:
    run = optkit.local_rounds(lambda x, g: (x, g), every=3)
    with pytest.raises(ValueError, match=r"\(2, 5\) at leaf 'x'.*a leading axis of 3"):
        run(0.0, {"x": jnp.ones((2, 5))})
    with pytest.raises(ValueError, match="every=0"):
        optkit.local_rounds(lambda x, g: (x, g), every=0)
