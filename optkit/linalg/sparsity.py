"""N:M sparsity: which entries of each group of M are the N largest."""

import jax
import jax.numpy as jnp

__all__ = ["nm_mask"]


def nm_mask(x: jax.Array, n: int, m: int, axis: int) -> jax.Array:
    """Tells which entries of each group of M neighbours are the N of largest magnitude.

    Exactly N of each group are kept: of equal magnitudes the earlier ones. If M does not divide
    the axis, the last group counts as filled up with zeros, of which none is kept before an entry
    of the array: it keeps N entries, or as many as it has. NaN counts as larger than any number.

    Args:
      x: an array of any rank from 1 and any real dtype.
      n: how many are kept, from 1 to ``m``.
      m: size of a group.
      axis: the axis along which neighbours are groups; for hardware that skips zeros that of
        the inputs.

    Returns:
      A bool array of the shape of ``x``.

    Raises:
      ValueError: ``n`` or ``m`` out of range, or no such axis.

    Example:
      >>> import jax.numpy as jnp
      >>> from optkit.linalg import nm_mask
      >>> nm_mask(jnp.array([3.0, -4.0, 1.0, 2.0, 5.0, 5.0, -5.0, 0.0]), 2, 4, axis=0).tolist()
      [True, True, False, False, True, True, False, False]
    """
    check_groups(n, m)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis={axis!r} is none of an array of shape {x.shape}")
    axis %= x.ndim
    size, width = x.shape[axis], -(-x.shape[axis] // m) * m
    magnitude = jnp.abs(x)
    magnitude = jnp.where(jnp.isnan(magnitude), jnp.inf, magnitude).astype(magnitude.dtype)
    if width != size:
        missing = [(0, width - size if at == axis else 0) for at in range(x.ndim)]
        magnitude = jnp.pad(magnitude, missing, constant_values=-1)
    before, behind = x.shape[:axis], x.shape[axis + 1 :]
    groups = magnitude.reshape(*before, width // m, m, *behind)
    # How many of its group come before an entry. A comparison of all pairs: no sort, and one loop
    # once compiled, for groups are small.
    own, other = jnp.expand_dims(groups, axis + 2), jnp.expand_dims(groups, axis + 1)
    place = jnp.arange(m)
    earlier = (place[None, :] < place[:, None]).reshape(
        *(1,) * (axis + 1), m, m, *(1,) * len(behind)
    )
    ahead = (other > own) | ((other == own) & earlier)
    kept = jnp.sum(ahead, axis=axis + 2, dtype=jnp.int32) < n
    kept = kept.reshape(*before, width, *behind)
    return jax.lax.slice_in_dim(kept, 0, size, axis=axis) if width != size else kept


def check_groups(n: int, m: int) -> None:
    """Raises ValueError unless ``1 <= n <= m``, both integers."""
    for name, value in (("n", n), ("m", m)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if n > m:
        raise ValueError(f"n={n} of each group of m={m} cannot be kept; give n of at most m")
