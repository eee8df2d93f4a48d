"""GaLore: Adam or Adafactor on gradients projected onto their leading directions."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from optkit.catalogue import register
from optkit.optimizers._low_rank import check_online, low_bytes, low_rank_recipe
from optkit.transforms import Transformation, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.low_rank import low_rank
from optkit.transforms.low_rank.projection import BasisKind, Draw, Rank, Side
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="memory",
    paper=(
        "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection",
        "2403.03507",
        2024,
    ),
    state_bytes=low_bytes(2, basis=True),
    tags=("low rank", "adam", "projection"),
    chain="low_rank(scale_by_adam) > decay > learning rate; adamw on the rest",
)
def galore_adamw(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    rank: Rank | None = None,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    eps_mode: Literal["corrected", "uncorrected"] = "uncorrected",
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
    """AdamW whose moments of a matrix live in an r-dimensional subspace of its gradients.

    For hidden matrices G of A = fan_out by B = fan_in, A at least B (else with sides exchanged), n
    the number of the update:

    1. every ``refresh_every`` steps ``P`` = the first r right singular vectors of G, (B, r); the
       moments stay as they are;
    2. ``R = G P``; ``m <- b1*m + (1-b1)*R``; ``v <- b2*v + (1-b2)*R**2``;
    3. ``N = sqrt(1-b2**n)/(1-b1**n) * m/(sqrt(v) + eps)``;
    4. ``W <- (1 - lr*weight_decay)*W - lr*scale*N P^T``.

    Embeddings, head, norms and biases go to the same AdamW in full, without ``scale``, or to
    ``other``.

    Matrix work of a step: ``4*A*B*r`` operations, and a singular value decomposition of each matrix
    in one step of ``refresh_every`` (``python -m benchmarks.low_rank``).

    Choose it where Adam's moments do not fit: at r = min(A, B)/4 it keeps a little more than a
    quarter of them. Evidence: nearly the loss of full Adam on C4 at that rank is the paper's claim.
    In ``python -m benchmarks.claims memory_lm``, a byte language model and 250 steps, it ends 0.9%
    below an AdamW whose matrices also have a quarter of the rate, with 41.2% of its state. Where
    every direction counts it stops early: in ``python -m benchmarks.claims low_rank``, a
    regression, at a loss of 7e-3, AdamW at 5e-14. An update has rank r at most; ``optkit.fira`` and
    ``optkit.frugal`` use the rest of the gradient at no more state.

    Args:
      learning_rate: a number or a schedule.
      rank: directions r of a matrix; as a float their share of the projected side, at least one.
        None for 0.25.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      eps_mode: "uncorrected" (the reference's) or "corrected", see ``optkit.scale_by_adam``.
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
      An ``optax.GradientTransformationExtraArgs``. State bytes: ``8*r*max(A, B) + 4*r*min(A, B)``
      per matrix, else 8 per parameter.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's side (names the leaf).

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.galore_adamw(0.01, rank=2)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 8 * 2 * 16 + 4 * 2 * 8
      320

    Reference:
      Zhao et al., GaLore, arXiv 2403.03507; Liang et al., Online Subspace Descent, arXiv
      2408.12857. The first paper writes Adam with eps beside the corrected
      root, its code beside the uncorrected one. A zero gradient at a refresh keeps the old basis.
    """
    check_online(basis, learning_rate, basis_optimizer)
    direction = low_rank(
        scale_by_adam(b1, b2, eps, eps_mode=eps_mode, state_dtype=state_dtype),
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
        "galore_adamw",
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
