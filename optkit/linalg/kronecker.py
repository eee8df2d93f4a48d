"""Tensors as vectors of a Kronecker product: second moments along one axis, factors applied."""

import jax
import jax.numpy as jnp
from jax import lax


def tensor_gram(
    x: jax.Array, axis: int, order: int, *, precision: lax.PrecisionLike = "highest"
) -> jax.Array:
    """Returns ``X X^T`` of each tensor of a batch, unfolded along an axis.

    Args:
      x: (*batch, d_1, ..., d_k).
      axis: which of the k axes, from -k to -1.
      order: k; axes before it are a batch.
      precision: of the product.

    Returns:
      (*batch, d_axis, d_axis).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
      >>> [optkit.linalg.tensor_gram(x, axis, order=2).tolist() for axis in (-2, -1)]
      [[[5.0, 2.0], [2.0, 1.0]], [[1.0, 2.0], [2.0, 5.0]]]
      >>> optkit.linalg.tensor_gram(jnp.ones((7, 2, 3)), -1, order=2).shape
      (7, 3, 3)
    """
    batch, axis = _axes(x, axis, order)
    summed = tuple(i for i in range(batch, x.ndim) if i != axis)
    own = tuple(range(batch))
    return lax.dot_general(x, x, ((summed, summed), (own, own)), precision=precision)


def apply_along(
    x: jax.Array,
    matrix: jax.Array,
    axis: int,
    order: int,
    *,
    precision: lax.PrecisionLike = "highest",
) -> jax.Array:
    """Multiplies each tensor of a batch by a matrix along an axis: ``y_..i.. = M_ij x_..j..``.

    Args:
      x: (*batch, d_1, ..., d_k).
      matrix: (*batch, r, d_axis).
      axis: which of the k axes, from -k to -1.
      order: k; axes before it are a batch.
      precision: of the product.

    Returns:
      The tensors, with r instead of d_axis.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> x, m = jnp.eye(2), jnp.array([[0.0, 2.0], [1.0, 0.0]])
      >>> optkit.linalg.apply_along(x, m, -2, 2).tolist()
      [[0.0, 2.0], [1.0, 0.0]]
    """
    batch, axis = _axes(x, axis, order)
    own = tuple(range(batch))
    if order == 2 and axis == x.ndim - 2:
        return jnp.matmul(matrix, x, precision=precision)  # nothing to transpose
    dims = (((axis,), (matrix.ndim - 1,)), (own, own))
    out = lax.dot_general(x, matrix, dims, precision=precision)
    return jnp.moveaxis(out, -1, axis)


def scaled_within(x: jax.Array, most: float, order: int) -> jax.Array:
    """Returns tensors scaled down to entries of at most ``most``, whose squares can be summed.

    Others stay what they are, bit for bit. XLA's CPU compiler puts a bound by entries into the loop
    that stacks the tensors, and takes seconds for that; this it does not.

    Args:
      x: (*batch, d_1, ..., d_k).
      most: see above.
      order: k; axes before them are a batch.

    Returns:
      The tensors.

    Example:
      >>> import jax.numpy as jnp
      >>> scaled_within(jnp.array([[1.0, 2.0], [4.0, 8.0]]), 2.0, 1).tolist()
      [[1.0, 2.0], [1.0, 2.0]]
    """
    inside = tuple(range(x.ndim - order, x.ndim))
    peak = jnp.max(jnp.abs(x), axis=inside, keepdims=True, initial=0.0)
    return x * (most / jnp.maximum(peak, most))


def _axes(x: jax.Array, axis: int, order: int) -> tuple[int, int]:
    """The number of batch axes, and the axis counted from the front."""
    if not 0 < order <= x.ndim or not -order <= axis < 0:
        raise ValueError(
            f"axis={axis} and order={order} of a tensor of shape {x.shape}: give an order of at "
            "most its rank, and an axis from -order to -1"
        )
    return x.ndim - order, x.ndim + axis
