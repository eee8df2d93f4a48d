"""Dion2 and Dion3: Muon on the part of the momentum that has waited longest."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import StateBytes, register
from optkit.linalg import Method
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, scale_by_shape, select_submatrix
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding

_ROWS = StateBytes(4, lambda fan_out, fan_in: 4 * fan_out, "4 a row")


@register(
    kind="recipe",
    family="matrix",
    paper=("Dion2: A Simple Method to Shrink Matrix in Muon", "2512.16928", 2025),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("muon", "newton-schulz", "error feedback"),
    chain="select_submatrix > sqrt(fan_out/fan_in) > decay > lr; adamw on the rest",
)
def dion2(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    fraction: float | None = None,
    coefficients: str | Sequence[Sequence[float]] = "polar_express_1p02",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
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
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon on a quarter of the rows or columns at a time, those that have waited longest.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``M <- M + g``;
    2. S: the ``k = max(1, ceil(fraction*size))`` rows (columns if A > B) of M of largest L1 norm;
       of equal ones those of lower index;
    3. ``O = NS(M_S)``;
    4. ``M_S <- b1*M_S``; what was not chosen does not decay;
    5. ``W <- (1 - lr*weight_decay)*W`` everywhere; ``W_S <- W_S - lr*sqrt(A/B)*O``.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95), or to ``other``.

    Matrix work of a step, with m = ceil(fraction*short side) and n the long side:
    ``5*(4*m^2*n + 2*m^3)``, about fraction squared of Muon's.

    Choose it over ``optkit.muon_dion`` where orthogonalizing takes a large part of the step; a
    weight then moves every 1/fraction steps. Evidence: that it keeps up with Muon is the paper's
    claim. A sharded matrix is chosen from as a whole, so that any sharding gives the same run.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: what the chosen slices of M keep, the paper's ef_decay.
      fraction: share of the slices in (0, 1]; None for 0.25.
      coefficients: "polar_express_1p02" or, in the library's other setting, "quintic_you".
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-8); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: shape factor, of the whole matrix, see ``optkit.scale_by_shape``.
      weight_decay: coefficient for the matrices, and for AdamW.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of M and the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.diag(jnp.array([1.0, 4.0, 3.0, 2.0]))}}
      >>> tx = optkit.dion2(0.5, fraction=0.5, method="svd", weight_decay=0.0)
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> (jnp.diag(u["dense"]["kernel"]).round(3) + 0.0).tolist()
      [0.0, -0.5, -0.5, 0.0]

    Reference:
      Ahn, Amsel, Langford, Dion2, arXiv 2512.16928. The reference's choice per shard ("local") is
      not offered.
    """
    check_number("b1", b1, low=0.0, high=1.0)
    links = (
        select_submatrix(
            fraction,
            ef_decay=b1,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            method=method,
            dims=dims,
            roles=roles,
            state_dtype=state_dtype,
            dtype=dtype,
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
        "dion2",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )


@register(
    kind="recipe",
    family="matrix",
    paper=("Dion2: A Simple Method to Shrink Matrix in Muon", "2512.16928", 2025),
    state_bytes={"matrix": _ROWS, "stacked": _ROWS, "expert": _ROWS, "conv": _ROWS, "*": 8},
    tags=("muon", "newton-schulz", "error feedback", "normuon"),
    chain="select_submatrix of rows, normalized > sqrt(fan_out/fan_in) > decay > lr; adamw",
)
def dion3(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.95,
    fraction: float | None = None,
    row_eps: ScalarOrSchedule = 1e-8,
    coefficients: str | Sequence[Sequence[float]] = "polar_express_1p02",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
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
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Dion2 on rows, which a second moment of each brings to equal size.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``M <- M + g``;
    2. S: the ``k = max(1, ceil(fraction*A))`` rows of M, one an output, of largest L1 norm; of
       equal ones those of lower index;
    3. ``O = NS(M_S)``;
    4. for the rows i of S ``v_i <- b2*v_i + (1-b2)*mean_j O_ij^2``, ``X_i = O_i/(sqrt(v_i) +
       row_eps)``; ``X <- X*norm(O)/norm(X)``;
    5. ``M_S <- b1*M_S``; what was not chosen does not decay, nor does its v;
    6. ``W <- (1 - lr*weight_decay)*W`` everywhere; ``W_S <- W_S - lr*sqrt(A/B)*X``.

    Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95), or to ``other``.

    Matrix work of a step, with m and n the short and the long side of the k x B block:
    ``5*(4*m^2*n + 2*m^3)``.

    Choose it in place of ``optkit.dion2`` as NorMuon in place of Muon: where neurons are updated
    unevenly. Evidence: none of our own; the reference library has it as NorDion2 and as Dion3.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: what the chosen rows of M keep, the reference's mu.
      b2: decay rate of the rows' second moment.
      fraction: share of the rows in (0, 1]; None for 0.25.
      row_eps: added to the root of the second moment.
      coefficients: "polar_express_1p02" or, in the library's other setting, "quintic_you".
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-8); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: shape factor, of the whole matrix, see ``optkit.scale_by_shape``.
      weight_decay: coefficient for the matrices, and for AdamW.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of M and AdamW's moments; float32 for 16-bit parameters if None. That of
        v is float32.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter and 4 per
      row, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}}
      >>> tx = optkit.dion3(0.01)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 4 * 32 + 4 * 8
      160

    Reference:
      Ahn, Amsel, Langford, Dion2, arXiv 2512.16928; Li et al., NorMuon, arXiv 2510.05491. The
      reference's choice per shard ("local") is not offered.
    """
    check_number("b1", b1, low=0.0, high=1.0)
    links = (
        select_submatrix(
            fraction,
            ef_decay=b1,
            slices="rows",
            normalize_rows=True,
            b2=b2,
            row_eps=row_eps,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            method=method,
            dims=dims,
            roles=roles,
            state_dtype=state_dtype,
            dtype=dtype,
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
        "dion3",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
