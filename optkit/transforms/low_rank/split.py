"""FRUGAL's division of a gradient: a stateful part in a subspace, a stateless one on the rest."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from optkit.catalogue import StateBytes, register
from optkit.transforms.base import Transformation, check_transformation
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number
from optkit.transforms.low_rank.engine import build
from optkit.transforms.low_rank.inner import OnRefresh
from optkit.transforms.low_rank.options import Subspace
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.low_rank.residual import Residual, residual_rule
from optkit.tree import Dims, RuleLike

# Around Adam, of a quarter of the columns.
_BYTES = StateBytes(
    -8, lambda rows, columns: 8 * rows * max(columns // 4, min(columns, 1)), "8 density, over Adam"
)


@register(
    kind="wrapper",
    family="memory",
    paper=("FRUGAL: Memory-Efficient Optimization by Reducing State Overhead", "2411.07837", 2024),
    state_bytes=dict.fromkeys(("matrix", "stacked", "expert", "conv"), _BYTES) | {"*": 0},
    tags=("low rank", "frugal", "projection"),
    chain="up(full(down(g))) + free(g - up(down(g)))",
)
def split(
    full: optax.GradientTransformation,
    free: Residual = "sign",
    select: BasisKind = "columns",
    *,
    density: Rank = 0.25,
    refresh_every: int | jax.Array = 200,
    state_on_refresh: OnRefresh = "reset",
    side: Side = "std",
    full_scale: ScalarOrSchedule = 1.0,
    free_scale: ScalarOrSchedule = 1.0,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    stored_as: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Splits gradients: a transformation with state on a part of them, one without on the rest.

    For a hidden matrix G, every ``refresh_every`` steps another part is selected, then

    1. ``R = down(G)``; ``N = full(R)``: state of the size of R only;
    2. ``u = full_scale*up(N) + free_scale*free(G - up(R))``.

    Updates have full rank, unlike those of ``optkit.low_rank`` that drops the rest. All other
    leaves go to ``full``. It is ``optkit.low_rank`` with the defaults of FRUGAL.

    Args:
      full: the transformation with state, such as ``optkit.scale_by_adam()``.
      free: what the rest becomes: "sign", "sgd", "drop", or a transformation.
      select: how the part is selected, see the bases of ``optkit.low_rank``: "columns" (inputs),
        "rows" (outputs), "randk" (entries), "permutation", "svd", "orthonormal" and so on. Whole
        leaves: ``optkit.rotate_blocks``.
      density: its share; an integer counts directions. Of columns, rows and entries a share is
        cut off to whole ones, of other bases it is rounded; at least one is left unless it is 0.0.
      refresh_every: steps from one selection to the next.
      state_on_refresh: "reset" begins anew, "transport" keeps what both selections share, and
        "keep" leaves stale coordinates.
      side: which side a basis projects, see ``optkit.low_rank``.
      full_scale: factor of the part with state.
      free_scale: factor of the rest; the paper has 0.1 for fine-tuning.
      key: seed or PRNG key of the selection; None for 0.
      draw: what stands in for the selection, see ``optkit.low_rank``.
      dims: see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      stored_as: dtype of a stored basis.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: ``density`` times
      those of ``full``; "svd" stores its basis and "randk" its indices.

    Raises:
      ValueError: an option out of range or against another; at init a rank above a matrix's side.
      TypeError: ``full`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.split(optax.scale(10.0), "sign", density=0.5)
      >>> g = {"w": jnp.array([[2.0], [3.0]])}  # two inputs
      >>> sorted(tx.update(g, tx.init(g))[0]["w"].ravel().tolist()) in ([1.0, 20.0], [1.0, 30.0])
      True

    Reference:
      Zmushko et al., FRUGAL, arXiv 2411.07837. The paper moves moments into the next subspace, its
      code resets them.
    """
    full = check_transformation("full", full, swapped_with=free)
    check_number("full_scale", full_scale)
    check_number("free_scale", free_scale)
    asked = Subspace(
        density,
        select,
        side=side,
        refresh_every=refresh_every,
        key=key,
        draw=draw,
        dims=dims,
        roles=roles,
        stored_as=stored_as,
        precision=precision,
        group_bytes=group_bytes,
        name="density",
    )
    rule = residual_rule(
        free,
        scale=full_scale,
        residual_scale=free_scale,
        share=1.0,
        growth=None,
        official_zero_norm=False,
    )
    numbers = {"full_scale": full_scale, "free_scale": free_scale}
    return build(full, asked, rule, state_on_refresh, numbers)
