"""LDAdam: low-rank Adam whose subspace moves at every step, with error feedback."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import StateBytes, register
from optkit.optimizers._low_rank import default_rank, low_rank_recipe
from optkit.transforms import Transformation, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.low_rank import scale_by_ldadam
from optkit.transforms.low_rank.ldadam import Tracking
from optkit.transforms.low_rank.projection import Rank
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike

_BYTES = StateBytes(
    4,
    lambda rows, columns: (
        (8 * max(rows, columns) + 4 * min(rows, columns)) * default_rank(rows, columns)
    ),
    "8 r max(sides) + 4 r min(sides)",
)


@register(
    kind="recipe",
    family="memory",
    paper=(
        "LDAdam: Adaptive Optimization from Low-Dimensional Gradient Statistics",
        "2410.16103",
        2024,
    ),
    state_bytes=dict.fromkeys(("matrix", "stacked", "expert", "conv"), _BYTES) | {"*": 8},
    tags=("low rank", "adam", "error feedback", "power iteration"),
    chain="scale_by_ldadam > decay > learning rate; adamw on the rest",
    replicated="moments of projections, of a rank that no axis of the parameter has",
)
def ldadam(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    rank: Rank | None = None,
    b1: ScalarOrSchedule = 0.908,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    rho: ScalarOrSchedule = 0.908,
    error_feedback: bool = True,
    tracking: Tracking = "power_iteration",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """Adam in a subspace that follows the gradients, and forgets nothing that it does not span.

    For hidden matrices, see ``optkit.scale_by_ldadam``:

    1. the basis P takes one power iteration towards the blend of momentum and gradient;
    2. the moments turn with it;
    3. Adam on ``P^T (G + E)``; what P does not hold stays in the error E;
    4. ``W <- (1 - lr*weight_decay)*W - lr*P N``.

    Embeddings, head, norms and biases go to AdamW with the same betas, or to ``other``.

    Matrix work of a step: ``20*A*B*r`` operations or so, and a QR decomposition of (min(A, B), r).

    Choose it where a basis that is stale for hundreds of steps, as GaLore's, loses too much; E
    costs 4 bytes per parameter, half of what Adam keeps. Evidence: near Adam in fine-tuning and
    pre-training at low rank is the paper's claim. In ``python -m benchmarks.claims low_rank``, a
    regression that needs every direction, it ends at 5e-4, below GaLore (7e-3) and far above AdamW
    (5e-14).

    Args:
      learning_rate: a number or a schedule.
      rank: directions r of a matrix; as a float their share of the short side, at least one. None
        for 0.25; the paper's code has 16.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      rho: weight of the momentum in what P follows; the paper takes ``b1``.
      error_feedback: keep E.
      tracking: "power_iteration", or "svd" at every step.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``8*r*max(A, B) + 4*r*min(A, B)``
      per matrix and 4 per parameter of it, else 8 per parameter.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's short side.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.ldadam(1e-3, rank=2)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 4 * 8 * 16 + 8 * 2 * 16 + 4 * 2 * 8
      832

    Reference:
      Robert et al., LDAdam, arXiv 2410.16103.
    """
    direction = scale_by_ldadam(
        b1,
        b2,
        eps,
        rank=0.25 if rank is None else rank,
        rho=rho,
        error_feedback=error_feedback,
        tracking=tracking,
        dims=dims,
        roles=roles,
        precision=precision,
        group_bytes=group_bytes,
    )
    return low_rank_recipe(
        "ldadam",
        direction,
        learning_rate,
        scale_by_adam(b1, b2, eps),
        other,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
