"""The tasks one by one, from tiled products: for matrices that on-chip memory does not hold."""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from optkit.kernels.newton_schulz.plan import GRAM, PRODUCT, Task


class Products(Protocol):
    """The kernels of ``optkit.kernels.symmetric_matmul`` for a platform."""

    symmetric_product: Callable[..., jax.Array]
    add_product: Callable[..., jax.Array]


def iterate(
    x: jax.Array,  # (batch, m, n)
    tasks: Sequence[Task],
    products: Products,
    precision: lax.PrecisionLike,
    **options: bool,
) -> jax.Array:
    """Works through the tasks."""
    squares: dict[int, jax.Array] = {}
    for task in tasks:
        if task.kind == GRAM:
            squares[task.to] = products.symmetric_product(
                x, x, None, 1.0, 0.0, precision, **options
            )
        elif task.kind == PRODUCT:
            left, right, addend = (squares[i] for i in (task.left, task.right, task.addend))
            y = products.symmetric_product(
                left, right, addend, task.alpha, task.beta, precision, **options
            )
            if task.gamma:
                identity = jnp.eye(y.shape[-1], dtype=jnp.float32)
                y = (y + task.gamma * identity[None]).astype(y.dtype)
            squares[task.to] = y
        else:
            x = products.add_product(
                squares[task.left], x, task.alpha, task.beta, precision, **options
            )
    return x
