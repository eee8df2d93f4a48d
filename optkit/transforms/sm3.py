"""SM3's direction: AdaGrad with one accumulator a row and one a column."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_gradients, map_leaves
from optkit.transforms.factored import FACTORED, Factors, squares
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_number,
    recorded,
    value_at,
)
from optkit.tree import Dims, PyTree, RuleLike, upcast


class ScaleBySm3State(NamedTuple):
    """State of ``scale_by_sm3``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    rows: PyTree  # float32 (*batch, fan_out) at leaves of rank 2 and more, masked elsewhere
    columns: PyTree  # float32 (*batch, fan_in) there
    whole: PyTree  # like the other leaves, float32 for 16-bit parameters
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _most(x: jax.Array, axis: int) -> jax.Array:
    return jnp.max(x, axis=axis, initial=0.0)


@register(
    kind="part",
    family="memory",
    paper=("Memory-Efficient Adaptive Optimization", "1901.11150", 2019),
    state_bytes={"*": FACTORED},
    tags=("adagrad", "factored"),
    chain="v = min(r, c) + g^2, r, c <- its maxima -> g / sqrt(v + eps)",
)
def scale_by_sm3(
    b2: Scalar | None = None,
    *,
    eps: ScalarOrSchedule = 1e-30,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Divides by the root of a bound of the sum of all squares, kept by rows and columns.

    For leaves of rank 2 and more, read as matrices:

    1. ``v_ij = min(r_i, c_j) + g_ij**2``, or with ``b2`` ``b2*min(r_i, c_j) + (1-b2)*g_ij**2``;
    2. ``r_i <- max_j v_ij``; ``c_j <- max_i v_ij``; with ``b2`` not below what they were;
    3. ``u = g / sqrt(v + eps)``.

    Leaves of lower rank have ``v <- v + g**2`` of their own. Without ``b2`` v is never below the
    true sum of squares, AdaGrad's.

    Args:
      b2: decay rate of an average instead of a sum; None for the sum.
      eps: added inside of the root.
      dims: which axes are input and output; other axes of a leaf are a batch of matrices.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of v of leaves of lower rank; r and c stay in float32.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: 4 per row and per
      column of a matrix; 4 per parameter of other leaves.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_sm3()
      >>> g = {"w": jnp.array([[3.0, 0.0], [0.0, 4.0]])}
      >>> u, state = tx.update(g, tx.init(g))
      >>> u["w"].tolist(), state.rows["w"].tolist()
      ([[1.0, 0.0], [0.0, 1.0]], [9.0, 16.0])

    Reference:
      Anil et al., SM3, arXiv 1901.11150, its second form. The references have an accumulator for
      every axis of a leaf of higher rank. Entries beyond 1e15 count as that, since their squares
      would overflow.
    """
    if b2 is not None:
        check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)

    def init_fn(params: PyTree) -> ScaleBySm3State:
        count = jnp.zeros((), jnp.int32)
        statistics = Factors(params, dims, roles).zeros(state_dtype)
        return ScaleBySm3State(count, *statistics, recorded(count, eps=eps))

    def update_fn(
        updates: PyTree, state: ScaleBySm3State, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, ScaleBySm3State]:
        del extra_args
        check_gradients(updates, params)
        small = value_at(eps, state.count)
        factors = Factors(updates, dims, roles)

        def grown(least: jax.Array, g: jax.Array) -> jax.Array:
            return least + squares(g) if b2 is None else b2 * least + (1.0 - b2) * squares(g)

        def direction(g: jax.Array, v: jax.Array) -> jax.Array:
            below = v + small
            return g * jax.lax.rsqrt(jnp.where(below == 0, 1.0, below))

        grads = [upcast(g) for g in factors.split(updates)]
        old = [factors.layout.unpack(tree) for tree in (state.rows, state.columns)]
        bounds = [
            grown(jnp.minimum(r[..., :, None], c[..., None, :]), g)
            for r, c, g in zip(*old, grads, strict=True)
        ]
        rows, columns = (
            [
                _most(v, axis) if b2 is None else jnp.maximum(held, _most(v, axis))
                for held, v in zip(own, bounds, strict=True)
            ]
            for own, axis in zip(old, (-1, -2), strict=True)
        )
        new = map_leaves(lambda g, v: grown(upcast(v), upcast(g)), factors.vectors, state.whole)
        vectors = map_leaves(lambda g, v: direction(upcast(g), v), factors.vectors, new)
        kept = lambda v, old: (v if b2 is None else jnp.maximum(v, upcast(old))).astype(old.dtype)  # noqa: E731
        whole = map_leaves(kept, new, state.whole)
        out = factors.join(list(map(direction, grads, bounds)), vectors)
        out = map_leaves(lambda u, g: u.astype(g.dtype), out, updates)
        after = ScaleBySm3State(
            state.count + 1,
            factors.pack(rows),
            factors.pack(columns),
            whole,
            recorded(state.count, eps=eps),
        )
        return out, after

    return Transformation(init_fn, update_fn)
