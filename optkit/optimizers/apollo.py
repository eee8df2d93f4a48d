"""APOLLO and APOLLO-Mini: raw gradients, scaled as Adam would in a random subspace."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from optkit.catalogue import register
from optkit.optimizers._low_rank import (
    corrected,
    low_bytes,
    low_rank_recipe,
)
from optkit.transforms import Transformation, limit_norm_growth, scale_by_adam
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, check_number
from optkit.transforms.low_rank import scale_by_subspace_norm
from optkit.transforms.low_rank.projection import Draw, Rank
from optkit.transforms.low_rank.subspace_norm import Per
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, RuleLike

_PAPER = ("APOLLO: SGD-like Memory, AdamW-level Performance", "2412.05270", 2024)
_CHAIN = "scale_by_subspace_norm > limit_norm_growth > sqrt(alpha) > decay > lr; adamw on the rest"


@register(
    kind="recipe",
    family="memory",
    paper=_PAPER,
    state_bytes=low_bytes(2, basis=False, norms=1),
    tags=("low rank", "adam", "projection"),
    chain=_CHAIN,
)
def apollo(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    rank: Rank | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    per: Per = "channel",
    alpha: Scalar = 1.0,
    scale_front: bool = False,
    growth: ScalarOrSchedule = 1.01,
    official_zero_norm: bool = False,
    refresh_every: int | jax.Array = 200,
    basis: Literal["gaussian", "svd"] = "gaussian",
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
    """Gradients whose channels are scaled as low-rank Adam would scale them.

    For hidden matrices G of A = fan_out by B = fan_in, A at least B (else with sides exchanged), n
    the number of the update:

    1. every ``refresh_every`` steps a random P of shape (B, r), entries of variance 1/r;
    2. ``R = G P``; ``m <- b1*m + (1-b1)*R``; ``v <- b2*v + (1-b2)*R**2``;
       ``N = m/(sqrt(v) + eps)``;
    3. ``s_j = norm(N_j)/(norm(R_j) + 1e-8)`` of each row; ``U = s*G``;
    4. ``l = max(norm(U)/(q + 1e-8), growth)/growth``; ``U <- U/l``; ``q <- norm(U)``;
    5. ``u = sqrt(alpha) * sqrt(1-b2**n)/(1-b1**n) * U``;
    6. ``W <- (1 - lr*weight_decay)*W - lr*u``.

    Embeddings, head, norms and biases go to AdamW, or to ``other``.

    Matrix work of a step: ``2*A*B*r`` operations, and ``B*r`` random numbers: the basis is drawn
    anew from its key and takes no memory.

    Choose it for the least state of the low-rank methods, ``optkit.apollo_mini`` for the very
    least; updates have full rank. Evidence: matching or beating AdamW on C4 up to 7 billion
    parameters is the paper's claim. In ``python -m benchmarks.claims memory_lm``, a byte language
    model and 250 steps, it ends 2.9% below an AdamW whose matrices have a quarter of the rate (the
    better of two) with 35.8% of the state, and 0.0475 below GaLore; on a regression in which every
    direction counts it ends below AdamW, too (``python -m benchmarks.claims low_rank``).

    Args:
      learning_rate: a number or a schedule.
      rank: directions r of a matrix; as a float their share of the shorter side, at least one.
        None for 0.25.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      per: one factor a "channel" or one a "matrix".
      alpha: the root of it multiplies the steps, as in the reference.
      scale_front: multiply before step 4 instead of after it.
      growth: bound of step 4.
      official_zero_norm: see ``optkit.limit_norm_growth``.
      refresh_every: steps between two bases.
      basis: "gaussian", or "svd" of the gradient, which is stored.
      stagger: every matrix in its own turn, see ``optkit.low_rank``.
      key: seed or PRNG key of the bases; None for 0.
      draw: what stands in for the basis, see there.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "after" decays the stepped weights, as the
        reference does.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``8*r*max(A, B) + 4`` per matrix
      ("svd": ``4*r*min(A, B)`` more), else 8 per parameter.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's side (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.apollo(0.01, rank=2)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 8 * 2 * 16 + 4
      260

    Reference:
      Zhu et al., APOLLO, arXiv 2412.05270. The reference stores P. After a gradient of zero it
      stops a matrix for some 1,700 steps, see ``official_zero_norm``.
    """
    check_number("alpha", alpha, low=0.0)
    links = [
        scale_by_subspace_norm(
            scale_by_adam(b1, b2, eps, debias=False, state_dtype=state_dtype),
            0.25 if rank is None else rank,
            per=per,
            refresh_every=refresh_every,
            basis=basis,
            stagger=stagger,
            key=key,
            draw=draw,
            dims=dims,
            roles=roles,
            stored_as=state_dtype,
            precision=precision,
            group_bytes=group_bytes,
        ),
        limit_norm_growth(growth, official_zero_norm=official_zero_norm, dims=dims, roles=roles),
    ]
    # Multiplication by a number commutes with all but the bound.
    links.insert(1 if scale_front else 2, optax.scale(alpha**0.5))
    return low_rank_recipe(
        "apollo",
        optax.chain(*links, corrected(b1, b2)),
        learning_rate,
        scale_by_adam(b1, b2, eps, eps_mode="uncorrected", state_dtype=state_dtype),
        other,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )


@register(
    kind="recipe",
    family="memory",
    paper=_PAPER,
    state_bytes=low_bytes(2, basis=False, norms=1, rank=1),
    tags=("low rank", "adam", "projection"),
    chain=_CHAIN,
)
def apollo_mini(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    alpha: Scalar = 128.0,
    scale_front: bool = False,
    growth: ScalarOrSchedule = 1.01,
    official_zero_norm: bool = False,
    refresh_every: int | jax.Array = 200,
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
) -> Transformation:
    """APOLLO with a subspace of one direction and one factor a matrix: the memory of SGD.

    ``optkit.apollo`` with r = 1 and ``U = norm(N)/(norm(R) + 1e-8) * G``, where norms are those of
    whole matrices; ``alpha`` makes up for what one direction sees of a gradient's length. Its root
    multiplies: 128 means 11.3.

    Matrix work of a step: ``2*A*B`` operations.

    Choose it where nothing is left for state; scale learning rates as Adam's. Evidence: beating
    AdamW at that memory on C4 is the paper's claim. In ``python -m benchmarks.claims memory_lm``, a
    byte language model and 250 steps, it ends 1.6% below an AdamW whose matrices have a quarter of
    the rate (the better of two) with 15.1% of the state.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      alpha: the root of it multiplies the steps.
      scale_front: multiply before growth is bounded; the authors do at 60 and 130 million
        parameters.
      growth: bound of the growth of a matrix's update from step to step.
      official_zero_norm: see ``optkit.limit_norm_growth``.
      refresh_every: steps between two directions.
      key: seed or PRNG key of the directions; None for 0.
      draw: what stands in for them, see ``optkit.low_rank``.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.apollo``.
      mask: matrices that decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``8*max(A, B) + 4`` per matrix,
      else 8 per parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((512, 1024))}}
      >>> optkit.plan(optkit.apollo_mini(), params).rows[0].state_bytes
      8196

    Reference:
      Zhu et al., APOLLO, arXiv 2412.05270.
    """
    return apollo(
        learning_rate,
        rank=1,
        b1=b1,
        b2=b2,
        eps=eps,
        per="matrix",
        alpha=alpha,
        scale_front=scale_front,
        growth=growth,
        official_zero_norm=official_zero_norm,
        refresh_every=refresh_every,
        key=key,
        draw=draw,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        other=other,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
        precision=precision,
    )
