"""A weight whose small entries fade out of the forward pass, and keep their gradients."""

import functools

import jax
import jax.numpy as jnp

from optkit.linalg.sparsity import check_groups, nm_mask

__all__ = ["decayed_mask"]


def decayed_mask(
    weight: jax.Array,
    d: float | jax.Array,
    n: int,
    m: int,
    *,
    axis: int = 0,
    masked_gradient: bool = False,
) -> jax.Array:
    """Scales all but the N largest of each group of M neighbours, straight-through backwards.

    1. ``k = nm_mask(W, n, m, axis)``, chosen anew at every call;
    2. forward ``W_eff = W*(k + (1-k)*d)``: the weight itself for ``d = 1``, N:M sparse for 0;
    3. backward ``dL/dW = dL/dW_eff``, so that masked entries learn on; with ``masked_gradient``
       ``dL/dW = k*dL/dW_eff``. Nothing flows to ``d``.

    Progressive gradient flow lets ``d`` fall over the training
    (``optkit.schedules.mask_decay``), or the pattern (``optkit.schedules.mask_patterns``).

    Args:
      weight: an array of any rank from 1.
      d: what is left of a masked entry, from 0 to 1; a number or a scalar array.
      n: entries of a group that are kept.
      m: size of a group.
      axis: the axis along which neighbours are groups: that of the inputs, which is the first of a
        Flax kernel and the last but one of a convolution's.
      masked_gradient: restrict the gradient to what is kept, a variant that the paper's abstract
        suggests and its code does not have.

    Returns:
      An array of the shape and dtype of ``weight``. Derivatives exist in both modes.

    Raises:
      ValueError: ``n`` or ``m`` out of range, or no such axis.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> w = jnp.array([4.0, 1.0, -2.0, 3.0])
      >>> optkit.decayed_mask(w, 0.5, 2, 4).tolist()
      [4.0, 0.5, -1.0, 3.0]
      >>> jax.grad(lambda w: optkit.decayed_mask(w, 0.0, 2, 4).sum())(w).tolist()
      [1.0, 1.0, 1.0, 1.0]

    Reference:
      Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers, arXiv 2402.04744.
    """
    check_groups(n, m)
    if not -weight.ndim <= axis < weight.ndim:
        raise ValueError(f"axis={axis!r} is none of an array of shape {weight.shape}")
    return _decayed(weight, jnp.asarray(d, weight.dtype), n, m, axis, masked_gradient)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3, 4, 5))
def _decayed(
    weight: jax.Array, d: jax.Array, n: int, m: int, axis: int, masked_gradient: bool
) -> jax.Array:
    del masked_gradient
    return jnp.where(nm_mask(weight, n, m, axis), weight, weight * d)


@_decayed.defjvp
def _(
    n: int,
    m: int,
    axis: int,
    masked_gradient: bool,
    primals: tuple[jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    # One rule for both modes: what flows backwards is its transpose.
    weight, d = primals
    kept = nm_mask(weight, n, m, axis)
    out = jnp.where(kept, weight, weight * d)
    tangent = tangents[0]
    return out, jnp.where(kept, tangent, jnp.zeros_like(tangent)) if masked_gradient else tangent
