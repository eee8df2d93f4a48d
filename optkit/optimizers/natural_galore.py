"""Natural GaLore: low-rank gradients times the inverse of what the last ones say."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from optkit.catalogue import register
from optkit.optimizers._low_rank import check_online, low_bytes, low_rank_recipe
from optkit.transforms import Transformation, scale_by_adam, scale_by_natural_fisher
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.low_rank import low_rank
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="memory",
    paper=(
        "Natural GaLore: Accelerating GaLore for memory-efficient LLM Training",
        "2410.16029",
        2024,
    ),
    state_bytes=low_bytes(22, basis=True),
    tags=("low rank", "adam", "projection", "natural gradient"),
    chain="low_rank(scale_by_natural_fisher > scale_by_adam) > decay > lr; adamw on the rest",
)
def natural_galore(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    rank: Rank | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_mode: Literal["corrected", "uncorrected"] = "uncorrected",
    history: int | None = None,
    damping: ScalarOrSchedule = 1e-3,
    scale: ScalarOrSchedule = 0.25,
    refresh_every: int | jax.Array = 200,
    basis: BasisKind = "svd",
    basis_optimizer: optax.GradientTransformation | None = None,
    side: Side = "std",
    state_on_refresh: Literal["keep", "reset", "transport"] = "keep",
    stagger: bool = False,
    key: int | jax.Array | None = None,
    draw: Draw | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: StepDecay = "decoupled",
    mask: Mask = None,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
) -> Transformation:
    """GaLore whose low-rank gradients are natural ones, by the last twenty of them.

    For hidden matrices, see ``optkit.galore_adamw``:

    1. P every ``refresh_every`` steps, and ``R = G P``;
    2. ``R <- (damping*I + H H^T)^-1 R``, H the last ``history`` low-rank gradients as vectors;
    3. Adam's direction N of R; ``W <- (1 - lr*weight_decay)*W - lr*scale*N P^T``.

    Embeddings, head, norms and biases go to AdamW in full, without ``scale``, or to ``other``.

    Matrix work of a step: that of GaLore, and ``2*history**2*r*max(A, B)`` operations.

    Choose it where steps are dear and state is not: the history is ten times Adam's low-rank
    moments, so that the paper's "no extra memory" does not hold. Evidence: a lower loss than
    GaLore's on C4 is the paper's claim.

    Args:
      learning_rate: a number or a schedule.
      rank: directions r of a matrix; as a float their share of the projected side, at least one.
        None for 0.25.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      eps_mode: "uncorrected" (the reference's) or "corrected", see ``optkit.scale_by_adam``.
      history: how many low-rank gradients are kept; None for 20.
      damping: see ``optkit.scale_by_natural_fisher``. Adam divides by lengths, so that it matters
        through directions and eps only.
      scale: factor of the matrices' steps.
      refresh_every: steps between two bases.
      basis: where P comes from, see ``optkit.low_rank``; "online" is Online Subspace Descent.
      basis_optimizer: a whole optimizer for "online" bases; its first step is the second one of
        training. None for AdamW with rate ``1/refresh_every`` and decay 0.01.
      side: which side is projected, see there; of squares "std" takes fan_in.
      state_on_refresh: what a new basis does to the moments, see there.
      stagger: every matrix in its own turn, see there.
      key: seed or PRNG key of random bases; None for 0.
      draw: what stands in for the basis, see there.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as the
        reference does.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of moments and P; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices. Where a mesh has cut them they are worked on
        as by ``sharding="layer"``, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``(8 + 4*history)*r*max(A, B) +
      4*r*min(A, B)`` per matrix, else 8 per parameter.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's side (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.natural_galore(0.01, rank=2, history=3)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # (8 + 4 * 3) * 2 * 16 + 4 * 2 * 8
      704

    Reference:
      Das et al., Natural GaLore, arXiv 2410.16029. Its code projects both sides (``side="full"``),
      its text one.
    """
    check_online(basis, learning_rate, basis_optimizer)
    direction = low_rank(
        optax.chain(
            scale_by_natural_fisher(history, damping=damping),
            scale_by_adam(b1, b2, eps, eps_mode=eps_mode, state_dtype=state_dtype),
        ),
        0.25 if rank is None else rank,
        refresh_every=refresh_every,
        basis=basis,
        basis_optimizer=basis_optimizer,
        side=side,
        state_on_refresh=state_on_refresh,
        scale=scale,
        stagger=stagger,
        key=key,
        draw=draw,
        dims=dims,
        roles=roles,
        stored_as=state_dtype,
        precision=precision,
        group_bytes=group_bytes,
    )
    return low_rank_recipe(
        "natural_galore",
        direction,
        learning_rate,
        scale_by_adam(b1, b2, eps, eps_mode=eps_mode, state_dtype=state_dtype),
        other,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
