"""The matrix direction: replace each matrix by its orthogonal factor."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit import linalg
from optkit.catalogue import register
from optkit.transforms.base import Transformation, stateless
from optkit.transforms.hyperparams import check_number, check_static_number
from optkit.tree import (
    Dims,
    MatrixLayout,
    PyTree,
    RuleLike,
    map_groups,
    upcast,
)

Method = Literal["auto", "ns", "gram_ns", "svd", "qdwh"] | Callable[[jax.Array], jax.Array]


@register(
    kind="part",
    family="direction",
    paper=("Muon: An optimizer for hidden layers in neural networks", None, 2024),
    state_bytes={"*": 0},
    tags=("muon", "newton-schulz"),
    chain="u = U V^T of u = U S V^T",
    matrices_only=True,
)
def orthogonalize(
    method: Method = "auto",
    *,
    coefficients: str | linalg.CoefficientSet | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    eps_mode: Literal["add", "clamp"] = "add",
    margin: float | None = None,
    precondition: Literal["frobenius", "spectral", "schatten", "aol"] = "frobenius",
    resets: Sequence[int] | None = None,
    adaptive: bool = False,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    dtype: Any | None = None,
    precision: Any | None = None,
    group_bytes: int | None = None,
) -> Transformation:
    """Replaces every matrix by (an approximation of) its orthogonal factor ``U V^T``.

    1. each leaf is read as a batch of matrices (``dims``), short side first;
    2. leaves of one shape are stacked, up to ``group_bytes``, and on a mesh of several devices
       moved to whole matrices on single devices;
    3. ``X <- X / (margin * norm(X) + eps)``, then per step ``G = X X^T``,
       ``X <- a X + (b G + c G^2) X`` (or the Gram form of the same polynomial);
    4. everything goes back to where it was. Zero matrices stay zero.

    Args:
      method: "ns", "gram_ns", "svd", "qdwh", or a function of ``(..., m, n)`` arrays of your own;
        "auto" takes the form that is faster for shape and dtype.
      coefficients: a name in ``optkit.linalg.COEFFICIENTS`` or rows (a, b, c).
      steps: number of steps; None for the usual number of the set.
      eps: guards the division, in units of the update; None (or 0) divides safely at any scale.
      eps_mode: "add" to the norm, or "clamp" the norm from below.
      margin: factor on the norm; None for the set's own.
      precondition: what X is divided by; "aol" rescales rows and changes the singular vectors.
      resets: steps at which the Gram form recomputes its Gram matrix.
      adaptive: multiply by ``<U V^T, X>``, which approximates the nuclear norm (optax's
        ``adaptive``, PolarGrad).
      dims: ``optax.contrib.MuonDimensionNumbers`` (or ``optkit.MatrixDims``, which also splits
        fused kernels into heads or query, key and value) for all leaves, a tree of them, or a
        function from params to such a tree; None for Flax's kernel layout by role.
      roles: your own ``(pattern, role)`` or ``(pattern, role, dims)`` rules.
      dtype: dtype of the iteration; None for float32 (float64 for float64 updates).
      precision: matmul precision of jax.
      group_bytes: bytes of one stack; None for the platform's measured default.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes) for trees of matrices; keeps
      dtypes.

    Raises:
      ValueError: a leaf is no matrix, or an option is unknown or impossible.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.orthogonalize("svd")
      >>> u, _ = tx.update({"w": jnp.diag(jnp.array([3.0, -2.0]))}, tx.init(None))
      >>> u["w"].round(3).tolist()
      [[1.0, 0.0], [0.0, -1.0]]

    Reference:
      Jordan et al., Muon, 2024 (blog); Amsel et al., The Polar Express, arXiv 2505.16932; Lau et
      al., PolarGrad, arXiv 2505.21799.
    """
    eps = 0.0 if eps is None else eps
    check_static_number("eps", eps)
    check_number("eps", eps, low=0.0)
    options: dict[str, Any] = {
        "coefficients": coefficients
        if isinstance(coefficients, str | linalg.CoefficientSet)
        else tuple((float(a), float(b), float(c)) for a, b, c in coefficients),
        "steps": steps,
        "eps": eps,
        "eps_mode": eps_mode,
        "margin": margin,
        "precondition": precondition,
        "resets": None if resets is None else tuple(resets),
        "precision": precision,
        "compute_dtype": dtype,
    }
    # bfloat16 has float32's range, so the leaf is cast whole, as the references do; float16 has
    # not, so there the cast comes after the division by the norm.
    entry = jnp.bfloat16 if dtype is not None and jnp.dtype(dtype) == jnp.bfloat16 else None
    # Tried once on a shape: wrong options raise here, not in the first step.
    jax.eval_shape(
        lambda x: linalg.orthogonal_factor(x, method, **options),
        jax.ShapeDtypeStruct((2, 3), jnp.float32),
    )

    def factor(x: jax.Array) -> jax.Array:
        out = linalg.orthogonal_factor(x.astype(entry or x.dtype), method, **options)
        out = out.astype(x.dtype)
        if adaptive:
            out = out * jnp.sum(out * x, axis=(-2, -1), keepdims=True)
        return out

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        layout = MatrixLayout(updates, dims, roles)
        matrices = layout.split(jax.tree.map(upcast, updates))
        done = layout.merge(map_groups(factor, matrices, group_bytes=group_bytes))
        return jax.tree.map(lambda x, u: x.astype(u.dtype), done, updates)

    return stateless(update)
