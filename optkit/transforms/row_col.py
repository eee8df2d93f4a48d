"""Rows and columns of each matrix divided by powers of their norms."""

from collections.abc import Sequence
from typing import get_args

import jax

from optkit import linalg
from optkit.catalogue import register
from optkit.linalg.balance import Order
from optkit.transforms.base import Transformation, stateless
from optkit.transforms.hyperparams import check_choice, check_number, check_static_int
from optkit.tree import Dims, MatrixLayout, PyTree, RuleLike, map_groups, upcast
from optkit.tree.costs import Sharding, as_sharding


@register(
    kind="part",
    family="direction",
    paper=("REG: A Regularization Optimizer for Robust Training Dynamics", "2510.03691", 2025),
    state_bytes={"*": 0},
    tags=("reg", "equilibration"),
    chain="u = D_r u D_c, rms(u) = 1",
    matrices_only=True,
)
def scale_by_row_col(
    p: float = 2.0,
    *,
    order: Order = "simultaneous",
    exponent: float = 0.5,
    iterations: int = 1,
    eps: float | None = None,
    update_rms: float = 1.0,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Balances each matrix: rows and columns are divided by powers of their p-norms.

    1. ``u <- D_r u D_c`` with ``D_r = diag(norm_p(row)**-exponent)``, ``D_c`` likewise of the
       columns, ``iterations`` times; ``order`` says which of them sees the other's result, see
       ``optkit.linalg.balance``;
    2. ``u <- u * update_rms*sqrt(m*n)/norm(u)``.

    A matrix that is badly conditioned because its rows or columns have unlike sizes comes out
    better conditioned; one that is so for another reason does not. The cost is
    ``4*iterations*m*n`` multiplications, next to nothing beside Newton-Schulz.

    Args:
      p: exponent of the norms, at least 1; ``math.inf`` for the largest magnitude.
      order: "simultaneous", "row_col" or "col_row", rows being outputs.
      exponent: power of the norms: 1/2 is Ruiz' equilibration, 1 normalises.
      iterations: how often.
      eps: added to the norms, in units of the update; None divides safely at any scale.
      update_rms: root mean square of the result.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      A stateless ``optax.GradientTransformationExtraArgs`` (0 bytes) for trees of matrices; keeps
      dtypes.

    Raises:
      ValueError: an option out of range or unknown, or a leaf that is no matrix.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_row_col(order="row_col", exponent=1.0)
      >>> u, _ = tx.update({"w": jnp.array([[100.0, 1.0], [-1.0, 0.01]])}, tx.init(None))
      >>> u["w"].round(3).tolist()
      [[1.0, 1.0], [-1.0, 1.0]]

    Reference:
      Liu et al., REG, arXiv 2510.03691, known to us by its abstract and by summaries only: see
      ``optkit.reg``. Ruiz, A scaling algorithm to equilibrate both rows and columns norms in
      matrices, 2001.
    """
    spread = as_sharding(sharding)
    check_number("p", p, low=1.0, infinite=True)
    check_number("exponent", exponent, low=0.0)
    check_number("update_rms", update_rms, low=0.0)
    check_choice("order", order, get_args(Order))
    check_static_int("iterations", iterations, low=0)
    if eps is not None:
        check_number("eps", eps, low=0.0)

    def balanced(x: jax.Array) -> jax.Array:
        out = linalg.balance(
            x,
            p,
            order=order,
            exponent=exponent,
            iterations=iterations,
            eps=0.0 if eps is None else eps,
        )
        return linalg.to_rms(out, update_rms)

    def update(updates: PyTree, params: PyTree | None) -> PyTree:
        del params
        layout = MatrixLayout(updates, dims, roles)
        matrices = layout.split(jax.tree.map(upcast, updates), "out")
        out = layout.merge(
            map_groups(balanced, matrices, group_bytes=group_bytes, sharding=spread), "out"
        )
        return jax.tree.map(lambda x, u: x.astype(u.dtype), out, updates)

    return stateless(update)
