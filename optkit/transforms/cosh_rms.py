"""AuON's divisor: the root mean square of the hyperbolic cosine."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.linalg.norms import safe_sqrt, to_unit_peak
from optkit.transforms.base import Transformation, map_updates, stateless
from optkit.transforms.hyperparams import check_number
from optkit.tree import (
    MATRIX_ROLES,
    Dims,
    MatrixLayout,
    PyTree,
    RuleLike,
    dims_by_path,
    leaves_with_paths,
    map_groups,
    rule_of,
    upcast,
)

Number = float | jax.Array


def divide_by_cosh_rms(
    x: jax.Array, axes: tuple[int, ...], gamma: Number, normalize: bool, eps: Number
) -> jax.Array:
    """What ``scale_by_cosh_rms`` does to the entries that lie along some axes."""
    if x.size == 0:
        return x
    unit, peak = to_unit_peak(x, axes)
    norm = safe_sqrt(jnp.sum(unit * unit, axis=axes, keepdims=True)) + eps / peak
    z = jnp.where(norm > 0, unit / jnp.where(norm > 0, norm, 1.0), 0.0)
    root = jnp.sqrt(jnp.mean(jnp.square(jnp.cosh(gamma * z)), axis=axes, keepdims=True))
    return (z if normalize else x) / root


def _is_matrix(path: str, leaf: Any, named: dict[str, Any] | None, roles: Any) -> bool:
    if named is not None:
        return named.get(path) is not None
    return rule_of(path, leaf, roles).role in MATRIX_ROLES


@register(
    kind="part",
    family="direction",
    paper=(
        "AuON: A Linear-time Alternative to Semi-Orthogonal Momentum Updates",
        "2509.24320",
        2025,
    ),
    state_bytes={"*": 0},
    tags=("auon", "normalised"),
    chain="u / sqrt(mean(cosh(gamma u/norm(u))^2))",
)
def scale_by_cosh_rms(
    gamma: float = 1.5,
    *,
    normalize: bool = False,
    eps: float | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """Divides by the root mean square of the cosh of the normalised entries.

    For each hidden matrix, and for every other leaf as a whole, with N entries:

    1. ``z = u / (norm(u) + eps)``, and 0 for a zero leaf;
    2. ``R = sqrt(mean(cosh(gamma*z)**2))``;
    3. ``u <- u/R`` (the published code), or with ``normalize`` ``u <- z/R`` (the paper).

    The direction of u never changes. ``1 <= R <= cosh(gamma)``, and as the squares of z sum to 1,
    ``R = 1 + gamma**2/(2N)`` up to terms of the order ``gamma**4/N``: 1.8e-2 above 1 for 8 x 8 and
    1.4e-6 for 512 x 1536. So on all but tiny leaves the code's form does nothing, and the paper's
    divides by the Frobenius norm.

    Args:
      gamma: factor in the cosh, from 0 to 40 (beyond, its square leaves float32); the code has 1.5,
        the paper 1.
      normalize: see above.
      eps: added to the norm (the code: 1e-7); None divides safely at any scale.
      dims: see ``optkit.orthogonalize``; it only says which axes are batch.
      roles: your own ``(pattern, role)`` rules: every matrix of a stack or of a batch of experts
        has a norm of its own.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes) for leaves of any rank; keeps
      dtypes.

    Raises:
      ValueError: ``gamma`` or ``eps`` out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_cosh_rms(1.0, normalize=True)
      >>> u, _ = tx.update({"w": jnp.array([300.0, 0.0])}, tx.init(None))
      >>> u["w"].round(4).tolist()  # 1 / sqrt((cosh(1)**2 + cosh(0)**2) / 2)
      [0.769..., 0.0]

    Reference:
      Maity, AuON, arXiv 2509.24320. The code takes one norm of a whole stack of matrices; for the
      hybrid the paper prints R without its root.
    """
    check_number("gamma", gamma, low=0.0, high=40.0)
    if eps is not None:
        check_number("eps", eps, low=0.0)
    added = 0.0 if eps is None else eps

    def whole(u: jax.Array) -> jax.Array:
        return divide_by_cosh_rms(u, tuple(range(u.ndim)), gamma, normalize, added)

    def matrices(x: jax.Array) -> jax.Array:
        return divide_by_cosh_rms(x, (-2, -1), gamma, normalize, added)

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        named = dims_by_path(updates, dims)
        structure: Any = jax.tree.structure(updates)
        pairs = leaves_with_paths(updates)
        hidden = [_is_matrix(path, leaf, named, roles) for path, leaf in pairs]

        def only(chosen: bool) -> PyTree:
            return structure.unflatten(
                leaf if is_hidden == chosen else optax.MaskedNode()
                for (_, leaf), is_hidden in zip(pairs, hidden, strict=True)
            )

        rest = iter(jax.tree.leaves(map_updates(whole, only(False))))
        given = only(True)
        layout = MatrixLayout(given, dims, roles)
        parts = layout.split(jax.tree.map(upcast, given))
        merged = iter(jax.tree.leaves(layout.merge(map_groups(matrices, parts, move=False))))
        return structure.unflatten(
            next(merged).astype(leaf.dtype) if is_hidden else next(rest)
            for (_, leaf), is_hidden in zip(pairs, hidden, strict=True)
        )

    return stateless(update)
