"""Clipping each leaf, or each matrix, by its own norm."""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from optkit import linalg
from optkit.catalogue import register
from optkit.linalg.norms import norm_over
from optkit.transforms.base import Transformation, map_updates, stateless
from optkit.transforms.guards import global_norm
from optkit.transforms.hyperparams import check_choice, check_number
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    MatrixLayout,
    PyTree,
    RuleLike,
    map_groups,
    map_with_path,
    rule_of,
    upcast,
)
from optkit.tree.matrices import matrix_view


@register(
    kind="part",
    family="safety",
    paper=(
        "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
        "2411.10438",
        2024,
    ),
    state_bytes={"*": 0},
    tags=("clip", "norm", "mars"),
    chain="u / max(1, norm(u)/max_norm), leaf by leaf",
)
def clip_leaf_norm(
    max_norm: float = 1.0,
    *,
    per: Literal["leaf", "matrix", "layer"] = "leaf",
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Scales every leaf down whose Euclidean norm is above a bound.

    ``n = norm(u)`` of a leaf; ``u <- u / max(1, n/max_norm)``. The norm is taken in float32 and in
    units of the largest entry, so that entries of 1e+25 do not overflow it. A non-finite entry
    makes its leaf non-finite, so that a guard can see it.

    Args:
      max_norm: largest norm that passes unchanged; positive.
      per: "leaf", or "matrix" for trees of matrices: each of a stack of layers, of experts or of
        fused heads is then clipped as if it were a leaf. Or "layer" for trees of any leaves: each
        layer of a scanned stack and each expert by itself, everything else leaf by leaf.
      dims: for "matrix", see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes); keeps dtypes.

    Raises:
      ValueError: ``max_norm`` is not positive; with "matrix", a leaf that is none.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.clip_leaf_norm(1.0)
      >>> u, _ = tx.update({"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}, tx.init(None))
      >>> u["a"].round(3).tolist(), u["b"].tolist()
      ([0.6..., 0.8...], [0.5])

    Reference:
      Step 2 of MARS, Yuan et al., arXiv 2411.10438.
    """
    check_number("max_norm", max_norm, low=1e-30, infinite=True)
    check_choice("per", per, ("leaf", "matrix", "layer"))

    def clip(u: jax.Array) -> jax.Array:
        return u / jnp.maximum(1.0, global_norm(u) / max_norm).astype(u.dtype)

    def clip_layers(path: str, u: jax.Array) -> jax.Array:
        return map_updates(lambda x: _scaled_down(x, _layer_axes(path, x, roles), max_norm), u)

    def clip_matrices(x: jax.Array) -> jax.Array:
        return x / jnp.maximum(1.0, linalg.frobenius_norm(x) / max_norm)

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        if per == "leaf":
            return map_updates(clip, updates)
        if per == "layer":
            return map_with_path(clip_layers, updates)
        layout = MatrixLayout(updates, dims, roles)
        matrices = layout.split(jax.tree.map(upcast, updates))
        done = layout.merge(map_groups(clip_matrices, matrices, move=False))
        return jax.tree.map(lambda x, u: x.astype(u.dtype), done, updates)

    return stateless(update)


def _layer_axes(path: str, leaf: jax.Array, roles: Sequence[RuleLike]) -> tuple[int, ...]:
    """The axes of one layer of a leaf: all but those of a stack."""
    rule = rule_of(path, leaf, roles)
    if rule.role not in MATRIX_ROLES or leaf.ndim < 2:
        return tuple(range(leaf.ndim))
    view = matrix_view(leaf, rule.dims, path=path, role=rule.role)
    return tuple(sorted((*view.in_axes, *view.out_axes)))


def _scaled_down(x: jax.Array, axes: tuple[int, ...], max_norm: float) -> jax.Array:
    return x / jnp.maximum(1.0, norm_over(x, axes) / max_norm)
