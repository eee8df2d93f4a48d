"""Products with a perturbed matrix by one kernel for the whole population.

A member knows nothing of the others: they are there as axes that ``jax.vmap`` maps over. What its
product becomes when it is mapped is said here. Axes along which the factors are the same, as the
two signs of a pair are, are more rows; the one along which they differ is the kernel's groups.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from optkit.evolution.interpreter.carried import Carried
from optkit.kernels.implementation import Implementation
from optkit.kernels.perturbed_matmul import Counters, perturbed_rows, why_not


def by_kernel(
    w: Carried, x: jax.Array, side: int, eqn: Any, implementation: Implementation
) -> jax.Array | None:
    """Returns a product with a perturbed matrix; None if it is none of rows with two factors.

    Args:
      w: the matrix.
      x: the other operand.
      side: of the product on which the matrix is, 0 or 1.
      eqn: the product.
      implementation: of the kernel.

    Raises:
      ValueError: the kernel does not serve it; names the leaf and the reason.
    """
    contract, batch = eqn.params["dimension_numbers"]
    left, right = w.value.left, w.value.right
    if batch[0] or w.ndim != 2 or len(left) != 1 or len(right) != 1 or len(contract[side]) != 1:
        return None
    if eqn.outvars[0].aval.dtype != x.dtype or w.value.dtype != x.dtype:
        return None
    inner = contract[side][0]
    base = w.value.base if inner == 0 else w.value.base.T
    # The factor of the axis that is summed over comes first.
    a, b = (w.value.a, w.value.b) if inner in right else (w.value.b, w.value.a)
    rows = jnp.moveaxis(x, contract[1 - side][0], -1)
    flat = rows.reshape(-1, rows.shape[-1])
    reason = why_not(flat[None], base, (a[None], b[None]))
    if reason is not None:
        raise ValueError(
            f"leaf {w.path!r}: no kernel serves it: {reason}; give implementation='xla'"
        )
    scale = jnp.broadcast_to(jnp.asarray(w.value.scale, jnp.float32), flat.shape[:1])
    product, draw = _product(implementation, eqn.params["precision"]), w.value.draw
    # Counters call the side of outputs "a", as the drawing does.
    if draw is not None and inner in right and w.origin == ((0,), (1,)):
        product = _product(implementation, eqn.params["precision"], a.shape[1])
        a, b = draw.key, draw.number
    out = product(flat, base, a, b, scale)
    out = out.reshape(*rows.shape[:-1], base.shape[1])
    return out if side else jnp.moveaxis(out, -1, 0)


@functools.cache
def _product(implementation: Implementation, precision: Any, rank: int = 0) -> Any:
    """Returns a function of x ``(rows, n)``, w, a, b and scale ``(rows,)`` that can be mapped.

    With a rank ``a`` is the key of what is generated, which all groups share, and ``b`` the number
    of the group's draw; mapped, numbers follow each other.
    """

    def groups(x: Any, w: Any, a: Any, b: Any, scale: Any, by: Implementation) -> jax.Array:
        noise = Counters(a, b[0], rank) if rank else (a, b)
        return perturbed_rows(x, w, noise, scale, precision=precision, implementation=by)

    def alone(x: Any, w: Any, a: Any, b: Any, scale: Any, by: Implementation) -> jax.Array:
        return groups(x[None], w, a if rank else a[None], b[None], scale[None], by)[0]

    @custom_vmap
    def product(x: Any, w: Any, a: Any, b: Any, scale: Any) -> jax.Array:
        return alone(x, w, a, b, scale, implementation)

    @product.def_vmap
    def mapped(size: int, batched: Any, *given: Any) -> tuple[jax.Array, bool]:
        has_x, has_w, *has_factors, _ = batched
        if has_w or not has_x or (rank and has_factors[0]):
            # Rows that members have in common meet the weights once: XLA does that.
            axes = [0 if own else None for own in batched]
            plain = functools.partial(alone, by="xla")
            return jax.vmap(plain, in_axes=axes, axis_size=size)(*given), True

        def spread(x: Any, own: bool) -> jax.Array:
            return x if own else jnp.broadcast_to(x, (size, *x.shape))

        x, w, a, b, scale = given
        scale = spread(scale, batched[4])
        if any(has_factors):
            a, b = (a if rank else spread(a, has_factors[0])), spread(b, has_factors[1])
            return groups(x, w, a, b, scale, implementation), True
        out = product(x.reshape(-1, x.shape[2]), w, a, b, scale.reshape(-1))
        return out.reshape(size, -1, out.shape[1]), True

    return product
