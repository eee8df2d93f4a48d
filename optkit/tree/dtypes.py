"""The dtype policy: statistics and arithmetic in float32 or better, updates keep their dtype."""

from typing import Any

import jax
import jax.numpy as jnp

from optkit.tree.paths import PyTree

DType = Any


def compute_dtype(*values: Any) -> jnp.dtype:
    """Returns the dtype that arithmetic on these values runs in: float32, or float64 if one is.

    Args:
      *values: arrays or dtypes.

    Returns:
      The dtype.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.compute_dtype(jnp.bfloat16)
      dtype('float32')
    """
    out = jnp.dtype(jnp.float32)
    for value in values:
        dtype = jnp.result_type(
            value if isinstance(value, type) else getattr(value, "dtype", value)
        )
        # JAX promotes no 8-bit float by itself; all of them fit into float32.
        if not (jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 2):
            out = jnp.promote_types(out, dtype)
    return out


def accumulator_dtype(leaf: Any, requested: DType | None = None) -> jnp.dtype:
    """Returns the dtype of a statistic kept for a leaf.

    bfloat16 and float16 parameters get float32 statistics: in 16 bits a second moment stalls and
    an epsilon underflows.

    Args:
      leaf: the parameter (array or shape).
      requested: what the user asked for; wins if given.

    Returns:
      The dtype.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.accumulator_dtype(jnp.zeros(3, jnp.bfloat16))
      dtype('float32')
    """
    return jnp.dtype(requested) if requested is not None else compute_dtype(leaf)


def zeros_like_params(params: PyTree, dtype: DType | None = None) -> PyTree:
    """Returns zeros shaped (and, eagerly, sharded) like the parameters, in accumulator dtype.

    Args:
      params: parameters or ``ShapeDtypeStruct``s.
      dtype: dtype asked for by the user.

    Returns:
      A tree of fresh arrays: no two share a buffer, so fresh state can be donated.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.zeros_like_params({"w": jnp.ones(2, jnp.bfloat16)})["w"].dtype
      dtype('float32')
    """
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulator_dtype(p, dtype)), params)


def upcast(x: jax.Array) -> jax.Array:
    """Returns the array in its compute dtype (a no-op for float32 and float64).

    Args:
      x: any float array.

    Returns:
      The array in float32 or better.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> optkit.tree.upcast(jnp.ones(2, jnp.float16)).dtype
      dtype('float32')
    """
    return jnp.asarray(x, compute_dtype(x))
