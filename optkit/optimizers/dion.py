"""Dion: orthonormalised low-rank updates with error feedback."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from optkit.catalogue import StateBytes, register
from optkit.linalg.subspace import QrMethod
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, scale_by_dion, scale_by_shape
from optkit.transforms.dion import InitBasis
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding

_BYTES = StateBytes(4, lambda rows, columns: 4 * min(rows, columns) ** 2, "4 r min(sides)")


@register(
    kind="recipe",
    family="matrix",
    paper=("Dion: Distributed Orthonormalized Updates", "2504.05295", 2025),
    state_bytes={"matrix": _BYTES, "stacked": _BYTES, "expert": _BYTES, "conv": _BYTES, "*": 8},
    tags=("low rank", "error feedback", "power iteration"),
    chain="scale_by_dion > sqrt(fan_out/fan_in) > decay > lr; adamw on the rest",
)
def dion(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    rank_fraction: float | None = None,
    rank_multiple_of: int | None = None,
    rank: int | None = None,
    power_iterations: int | None = None,
    eps: float | None = None,
    qr_method: QrMethod = "cqr",
    key: int | jax.Array | None = None,
    init_basis: InitBasis | None = None,
    scale: Mode = "rms_op",
    weight_decay: ScalarOrSchedule = 0.01,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_eps: float = 1e-8,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    precision: Any | None = "highest",
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon's idea at low rank: a power iteration finds the update, the buffer keeps the rest.

    For hidden matrices, with A = fan_out and B = fan_in, M as (long side, short side), square ones
    as (A, B), and Q of shape (short side, r):

    1. ``M <- M + g``;
    2. ``P = orth(M Q)``; ``R = M^T P``;
    3. ``M <- M - (1-b1)*P R^T``: error feedback, what P does not span waits undecayed;
    4. ``Q <- R / column norms``;
    5. ``W <- (1 - lr*weight_decay)*W - lr*sqrt(A/B)*P Q^T``, turned back.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95), or to ``other``.

    Matrix work of a step: ``8*A*B*r`` operations in products, and a QR of the panel, ``4*n*r^2``
    with n the long side; Muon's five steps are ``20*m^2*n + 10*m^3``, m the short side. On CPU a QR
    runs far below the speed of products, so that at full rank a step takes longer than Muon's, and
    at a quarter of it less (``python -m benchmarks.matrix_recipes``).

    Choose it, with a rank fraction of 1/4 or less, where matrices are so large that whole ones are
    costly to orthogonalize or to send: only P and R need to travel in the paper's distributed form
    (here whole matrices do, as for ``optkit.muon``). Evidence: a quarter of the rank doing as well
    as all of it at 3 billion parameters is the paper's claim; its authors now recommend Dion2.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: what M keeps of the part that was found, the paper's mu; 1 is without error feedback.
      rank_fraction: r as a share of the short side, in (0, 1]; None for 1.
      rank_multiple_of: rounds r up to a multiple, at most to the short side; None for 1.
      rank: r itself, for every matrix, instead of the two.
      power_iterations: how often step 2 runs, with R for Q; None for 1.
      eps: added to the column norms (the reference: 1e-8); None divides safely at any scale.
      qr_method: "qr", "cqr" or "rcqr", see ``optkit.linalg.orthonormalize``: the same up to
        rounding. The reference's default is "rcqr".
      key: seed or PRNG key of the first Q; None for 0.
      init_basis: the first Q by path and shape, see ``optkit.scale_by_dion``.
      scale: shape factor of step 5, see ``optkit.scale_by_shape``.
      weight_decay: coefficient for the matrices, and for AdamW.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of M, Q and the moments; float32 for 16-bit parameters if None.
      precision: matmul precision of jax.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter and
      ``4*r*min(A, B)`` per matrix, else 8.

    Raises:
      ValueError: an option out of range; at init a rank above a matrix's short side, or a leaf that
        cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
      >>> tx = optkit.dion(0.01, rank_fraction=0.25)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 4 * (8 * 16 + 2 * 8)
      576

    Reference:
      Ahn et al., Dion, arXiv 2504.05295. The paper does not transpose wide matrices; its library
      does, and so do we. Where the reference orthonormalises the rounding noise of a rank-deficient
      M, we leave null directions alone.
    """
    links = (
        scale_by_dion(
            b1,
            rank_fraction=rank_fraction,
            rank_multiple_of=rank_multiple_of,
            rank=rank,
            power_iterations=power_iterations,
            eps=eps,
            qr_method=qr_method,
            key=key,
            init_basis=init_basis,
            dims=dims,
            roles=roles,
            state_dtype=state_dtype,
            precision=precision,
            group_bytes=group_bytes,
            sharding=sharding,
        ),
        scale_by_shape(scale, dims=dims, roles=roles),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adam_for_the_rest(
        other, rate, eps=adam_eps, state_dtype=state_dtype, weight_decay=weight_decay
    )
    return matrix_recipe(
        "dion",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
