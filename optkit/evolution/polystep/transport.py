"""From the costs of a polytope's corners to the weights that they are averaged with."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.transforms.hyperparams import check_choice, check_number

Solver = Literal["softmax", "sinkhorn"]
NonFinite = Literal["worst", "penalty"]
CostScale = float | Literal["mean", "max"] | None

ITERATIONS, CHECK_EVERY, THRESHOLD = 2000, 10, 1e-6


def check_cost_scale(scale_cost: Any) -> None:
    """Raises ValueError unless a scale of costs is one of the names, None or a positive number."""
    if isinstance(scale_cost, str):
        check_choice("scale_cost", scale_cost, ("mean", "max"))
    elif scale_cost is not None:
        check_number("scale_cost", scale_cost, low=0.0)
        if not isinstance(scale_cost, jax.Array) and scale_cost == 0:
            raise ValueError(
                "scale_cost=0 divides costs by nothing; give a positive number or None"
            )


def comparable(cost: jax.Array, scale_cost: CostScale, nonfinite: NonFinite) -> jax.Array:
    """Returns costs over their scale, those that are not finite above all others.

    With "worst" the scale is that of the finite costs; with "penalty" it is taken after the
    penalty of at least 1e6 has been put in, as the reference does: "mean" and "max" then scale all
    differences away.
    """
    finite = jnp.isfinite(cost)
    size = jnp.abs(jnp.where(finite, cost, 0.0))
    filled = jnp.where(finite, cost, jnp.maximum(1e6, 2.0 * jnp.max(size) + 1.0))
    if scale_cost is None or not isinstance(scale_cost, str):
        return filled if scale_cost is None else filled / scale_cost
    if nonfinite == "penalty":
        size, finite = jnp.abs(filled), jnp.ones_like(finite)
    number = jnp.maximum(jnp.sum(finite), 1)
    scale = jnp.max(size) if scale_cost == "max" else jnp.sum(size) / number
    return filled / jnp.maximum(scale, 1e-10)


def plan_weights(cost: jax.Array, eps: jax.Array | float, solver: Solver) -> jax.Array:
    """Returns the weights of each particle's corners, rows that sum to 1.

    Args:
      cost: ``(P, v)``, finite.
      eps: entropic regularization: towards 0 the best corner takes all.
      solver: "softmax" of each row, or "sinkhorn" for a plan whose columns have equal mass too.
    """
    if solver == "softmax":
        # The least first, so that a small eps sends no row to minus infinity.
        return jax.nn.softmax((jnp.min(cost, -1, keepdims=True) - cost) / eps, axis=-1)
    kernel = (jnp.min(cost) - cost) / eps
    rows, columns = (-jnp.log(jnp.asarray(size, cost.dtype)) for size in cost.shape)

    def iterate(g: jax.Array) -> tuple[jax.Array, jax.Array]:
        f = rows - jax.nn.logsumexp(kernel + g, axis=1, keepdims=True)
        return f, columns - jax.nn.logsumexp(kernel + f, axis=0, keepdims=True)

    def advance(carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        count, _, f, g = carry
        f, g = jax.lax.fori_loop(0, CHECK_EVERY, lambda _, fg: iterate(fg[1]), (f, g))
        mass = jnp.sum(jnp.exp(kernel + f + g), axis=1)
        # Columns have their mass after each iteration.
        return count + CHECK_EVERY, jnp.max(jnp.abs(mass - 1.0 / cost.shape[0])), f, g

    def unfinished(carry: tuple[jax.Array, ...]) -> jax.Array:
        return (carry[0] < ITERATIONS) & (carry[1] >= THRESHOLD)

    zeros = [
        jnp.zeros_like(kernel, shape=shape) for shape in ((cost.shape[0], 1), (1, cost.shape[1]))
    ]
    start = (jnp.zeros((), jnp.int32), jnp.asarray(jnp.inf, cost.dtype), *zeros)
    _, _, f, g = jax.lax.while_loop(unfinished, advance, start)
    return jax.nn.softmax(kernel + f + g, axis=-1)
