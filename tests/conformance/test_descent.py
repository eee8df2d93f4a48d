"""Every recipe goes downhill."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from optkit.tree import leaves_with_paths
from tests.conformance.methods import DESCENT_STEPS, Method
from tests.conformance.trees import filled

# Steps that fall as 1/sqrt(t), pSGLD's from ten times their size at first, lead less far; RATE is
# what normalized momentum moves all parameters together.
REMAINS = {"adago": 0.9, "normalized_momentum": 0.8}
# Of cast_adams it is 1/(1-b1) of the later ones.
FIRST_MOVE = {
    "adago": 0.2,
    "apollo": 0.2,
    "cast_adams": 0.5,
    "classp": 0.2,
    "psgld": 0.3,
    "sm3": 0.3,
}


@pytest.mark.sweep
def test_quadratic(recipe: Method) -> None:
    """The loss |p - target|^2 / 2 falls on every leaf; the recipe's step is RATE an entry or so."""
    _, params, _ = recipe.scanned
    start, target = dict(leaves_with_paths(recipe.params())), recipe.grads(0)
    for (path, run), goal in zip(leaves_with_paths(params), jax.tree.leaves(target), strict=True):
        # The other leaves of a matrix recipe take smaller steps by default.
        before = np.sum(np.square(start[path] - goal))
        after = np.sum(np.square(run[-1] - goal))
        assert after < before, path
    total = [
        sum(
            float(jnp.sum(jnp.square(x[at] - y)))
            for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(target), strict=True)
        )
        for at in (0, DESCENT_STEPS - 1)
    ]
    assert total[1] < REMAINS.get(recipe.entry.name, 0.7) * total[0]


def _build(recipe: Method, rate: float | optax.Schedule) -> optax.GradientTransformation:
    rates = [name for name in recipe.hyperparameters if name.endswith("learning_rate")]
    return recipe.build(**dict.fromkeys(rates, rate), weight_decay=0.0)


@pytest.mark.sweep
def test_matrix_regression(recipe: Method) -> None:
    """Y = X W with a wide spread of singular values in X."""
    truth = filled({"dense/kernel": (6, 4), "dense/bias": (4,)}, 7)
    x = filled({"x": (32, 6)}, 8)["x"] * jnp.array([[2.0, 1.5, 1.0, 0.7, 0.5, 0.3]])

    def loss(params: dict) -> jax.Array:
        difference = jax.tree.map(jnp.subtract, params, truth)["dense"]
        return jnp.mean(jnp.square(x @ difference["kernel"] + difference["bias"][None]))

    # A rate that suits the recipe: its first step moves the kernel by 0.1 an entry.
    start = jax.grad(loss)(jax.tree.map(jnp.zeros_like, truth))
    first, _ = (unit := _build(recipe, 1.0)).update(start, unit.init(start), start)
    move = FIRST_MOVE.get(recipe.entry.name, 0.1)
    rate = move / jnp.sqrt(jnp.mean(jnp.square(first["dense"]["kernel"])))
    tx = _build(recipe, optax.cosine_decay_schedule(float(rate), 60))
    # On a sphere there are no zeros; upside down the truth has the norm that it has to have.
    begin = jnp.flipud if recipe.is_on_spheres else jnp.zeros_like
    params = jax.tree.map(begin, truth)

    def body(carry: tuple, _: None) -> tuple:
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value_fn=loss)
        return (optax.apply_updates(params, updates), state), value

    losses = jax.jit(lambda carry: jax.lax.scan(body, carry, length=60)[1])(
        (params, tx.init(params))
    )
    assert losses[-1] < 0.1 * losses[0], losses[::10]
