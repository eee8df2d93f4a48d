"""Fira: GaLore, and the rest of the gradient at the length that low-rank Adam suggests."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import optax

from optkit.catalogue import register
from optkit.optimizers._low_rank import (
    corrected,
    low_bytes,
    low_rank_recipe,
)
from optkit.transforms import Transformation, scale_by_adam, scale_by_rms
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule, check_choice, check_number
from optkit.transforms.low_rank import low_rank
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, RuleLike

Inner = Literal["adam", "rmsprop"]


@register(
    kind="recipe",
    family="memory",
    paper=(
        "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?",
        "2410.01623",
        2024,
    ),
    state_bytes=low_bytes(2, basis=True, norms=1),
    tags=("low rank", "adam", "projection"),
    chain="low_rank(scale_by_adam, norm_scaled rest) > decay > learning rate; adamw on the rest",
)
def fira(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    rank: Rank | None = None,
    inner: Inner = "adam",
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    alpha: Scalar = 0.25,
    residual_alpha: Scalar | None = None,
    growth: ScalarOrSchedule = 1.01,
    official_zero_norm: bool = False,
    refresh_every: int | jax.Array = 200,
    basis: BasisKind = "svd",
    side: Side = "std",
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
    """GaLore's step plus the rest of the gradient, scaled as Adam scaled the part that it saw.

    For hidden matrices G of A = fan_out by B = fan_in, A at least B (else with sides exchanged), n
    the number of the update:

    1. P, R, m and v as in ``optkit.galore_adamw``; ``N = m/(sqrt(v) + eps)``;
    2. ``s_j = norm(N_j)/(norm(R_j) + 1e-8)`` of each row;
    3. ``C = s*(G - residual_alpha*R P^T)``; ``l = max(norm(C)/(q + 1e-8), growth)/growth``;
       ``C <- C/l``; ``q <- norm(C)``;
    4. ``u = sqrt(1-b2**n)/(1-b1**n) * (alpha*N P^T + C)``;
    5. ``W <- (1 - lr*weight_decay)*W - lr*u``.

    With ``inner="rmsprop"`` there is no m: ``N = R/(sqrt(v) + eps)`` and ``u = alpha*N P^T + C``.

    Embeddings, head, norms and biases go to AdamW (RMSProp), or to ``other``.

    Matrix work of a step: ``6*A*B*r`` operations, and the singular value decompositions of GaLore.

    Choose it over ``optkit.galore_adamw``: its updates have full rank, for one number a matrix.
    Evidence: better than GaLore and on par with full-rank training on C4 is the paper's claim. In
    ``python -m benchmarks.claims memory_lm``, a byte language model and 250 steps, it ends 0.044
    below GaLore, and 2.7% below an AdamW whose matrices also have a quarter of the rate, with 41.2%
    of its state; on a regression in which every direction counts 14 decades below GaLore
    (``python -m benchmarks.claims low_rank``).

    Args:
      learning_rate: a number or a schedule.
      rank: directions r of a matrix; as a float their share of the projected side, at least one.
        None for 0.25.
      inner: "adam", or "rmsprop", whose moments are not corrected: the first steps are some
        ``1/sqrt(1-b2)`` times as long as later ones.
      b1: decay rate of Adam's first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      alpha: factor of the part inside of the subspace.
      residual_alpha: how much of that part is taken out of the rest. None for ``alpha``, as in the
        code: then C keeps a share ``1 - alpha`` of it. The paper has 1.
      growth: bound of step 3.
      official_zero_norm: see ``optkit.limit_norm_growth``.
      refresh_every: steps between two bases.
      basis: where P comes from, see ``optkit.low_rank``.
      side: which side is projected, see there; not "full".
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
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``8*r*max(A, B) + 4*r*min(A, B) +
      4`` per matrix, else 8 per parameter; with "rmsprop" ``4*r*max(A, B) + 4*r*min(A, B)
      + 4`` and 4.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's side (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.fira(0.01, rank=2)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 8 * 2 * 16 + 4 * 2 * 8 + 4
      324

    Reference:
      Chen et al., Fira, arXiv 2410.01623. After a residual of zero the reference stops the rest of
      a matrix for some 1,700 steps, see ``official_zero_norm``. Its RMSProp can also center v and
      average N, which this one does not, and ignores the weight decay that it is given.
    """
    check_choice("inner", inner, get_args(Inner))
    check_number("alpha", alpha)
    is_adam = inner == "adam"
    if is_adam:
        low = scale_by_adam(b1, b2, eps, debias=False, state_dtype=state_dtype)
        rest = scale_by_adam(b1, b2, eps, eps_mode="uncorrected", state_dtype=state_dtype)
    else:
        low = rest = scale_by_rms(b2, eps, debias=False, state_dtype=state_dtype)
    direction = low_rank(
        low,
        0.25 if rank is None else rank,
        refresh_every=refresh_every,
        basis=basis,
        side=side,
        residual="norm_scaled",
        scale=alpha,
        residual_share=alpha if residual_alpha is None else residual_alpha,
        growth=growth,
        official_zero_norm=official_zero_norm,
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
        "fira",
        optax.chain(direction, corrected(b1, b2)) if is_adam else direction,
        learning_rate,
        rest,
        other,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
        rest_name="adamw" if is_adam else "rmsprop",
    )
