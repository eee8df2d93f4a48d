"""NorMuon: Muon whose rows, one a neuron, are brought to equal size."""

from collections.abc import Sequence
from typing import Any, Literal

import optax

from optkit.catalogue import StateBytes, register
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import (
    Transformation,
    momentum,
    orthogonalize,
    scale_by_row_moment,
    scale_by_shape,
)
from optkit.transforms.hyperparams import ScalarOrSchedule, check_choice
from optkit.transforms.matrix_map import factor_options, orthogonal_function
from optkit.transforms.orthogonalize import Method
from optkit.transforms.row_moment import Axis
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding

_PAPER = ("NorMuon: Making Muon more efficient and scalable", "2510.05491", 2025)
_ROWS = StateBytes(4, lambda fan_out, fan_in: 4 * fan_out, "4 a row")
_BYTES = {"matrix": _ROWS, "stacked": _ROWS, "expert": _ROWS, "conv": _ROWS, "*": 8}


# What says how matrices are read and worked through.
_READING = ("dims", "roles", "group_bytes", "sharding")


def _orthogonal_rows(
    method: Method, given: dict[str, Any], **moment: Any
) -> tuple[Transformation, ...]:
    """``orthogonalize`` and ``scale_by_row_moment``, in one pass over the matrices where it can."""
    reading: dict[str, Any] = {name: given[name] for name in _READING}
    if method == "randomized":
        return orthogonalize(method, **given), scale_by_row_moment(**moment, **reading)
    options = {name: value for name, value in given.items() if name not in reading}
    factor = orthogonal_function(method, factor_options(**options))
    return (scale_by_row_moment(factor=factor, **moment, **reading),)


@register(
    kind="recipe",
    family="matrix",
    paper=_PAPER,
    state_bytes=_BYTES,
    tags=("muon", "normuon", "newton-schulz", "second moment"),
    chain="momentum > orthogonalize > scale_by_row_moment > scale_by_shape > decay > lr; adamw on "
    "the rest",
)
def normuon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    b2: ScalarOrSchedule = 0.95,
    row_eps: float = 1e-10,
    axis: Axis = "out",
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    rescale: Literal["frobenius", "match_rms"] = "frobenius",
    update_rms: float = 0.2,
    scale: Mode | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule = 3e-4,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon with a second moment of each row of the orthogonalized update.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + (1-b1)*g``; ``u = (1-b1)*g + b1*m`` (Nesterov);
    2. ``O = NS(u)``;
    3. ``v_i <- b2*v_i + (1-b2)*mean_j O_ij**2``; ``X_ij = O_ij/(sqrt(v_i) + row_eps)``;
    4. "frobenius" (the authors' code): ``X <- X*norm(O)/norm(X)*sqrt(max(1, A/B))``;
       "match_rms" (the paper): ``X <- X*update_rms*sqrt(A*B)/norm(X)``;
    5. ``W <- (1 - lr*weight_decay)*W - lr*X``.

    So an update is as long as Muon's ("frobenius"), and at the first step all its rows are equally
    long. Embeddings, head, norms and biases go to AdamW with betas (0.9, 0.95) and eps 1e-10, or
    to ``other``. Beyond Muon a step takes about ``3*A*B`` operations, no products
    of matrices.

    Choose it in place of Muon where neurons are updated unevenly, at a cost of one number a
    neuron. Evidence: 11% better than Muon in training steps at 1.1 billion parameters is the
    paper's claim; a byte model of two layers needed as many steps as with Muon, its rows evener by
    a fifth (``python -m benchmarks.claims normuon``). Use "match_rms" to share learning rate and
    decay with AdamW.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      b2: decay rate of the second moment.
      row_eps: added to its root.
      axis: what has one number each, see ``optkit.scale_by_row_moment``.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-7); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      rescale: step 4.
      update_rms: root mean square of the update of "match_rms".
      scale: shape factor, see ``optkit.scale_by_shape``; None for "max1" with "frobenius" and none
        with "match_rms".
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments but ``v``; float32 for 16-bit parameters if None.
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
      >>> tx = optkit.normuon(0.02)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> optkit.plan(tx, params).rows[1].state_bytes  # 4 * 32 + 4 * 8
      160

    Reference:
      Li et al., NorMuon, arXiv 2510.05491. For 4-D leaves the authors' code keeps a moment for each
      entry of the last axis but one; we keep one for each output of the convolution.
    """
    check_choice("rescale", rescale, ("frobenius", "match_rms"))
    if scale is None:
        scale = "max1" if rescale == "frobenius" else "none"
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    given = {"coefficients": coefficients, "steps": steps, "eps": eps, "dtype": dtype}
    given |= {**reading, "group_bytes": group_bytes, "sharding": sharding}
    links = (
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        *_orthogonal_rows(
            method, given, b2=b2, axis=axis, eps=row_eps, rescale=rescale, update_rms=update_rms
        ),
        scale_by_shape(scale, **reading),
    )
    rest = adam_for_the_rest(
        other,
        adam_learning_rate,
        eps=1e-10,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    return matrix_recipe(
        "normuon",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        **reading,
    )


@register(
    kind="recipe",
    family="matrix",
    paper=_PAPER,
    state_bytes=_BYTES,
    tags=("muon", "normuon", "polar express", "second moment"),
    chain="heavy ball > polar express > scale_by_row_moment > sqrt(fan_out/fan_in) > decay > lr; "
    "adamw on the rest",
)
def normuon_dion(
    learning_rate: ScalarOrSchedule = 0.01,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = False,
    b2: ScalarOrSchedule = 0.95,
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
    """NorMuon as the Dion authors' library runs it: ``muon_dion`` with a second moment of each row.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + g``; ``u = m``, or ``g + b1*m`` with ``nesterov``;
    2. ``O = NS(u)`` with the Polar Express coefficients;
    3. ``v_i <- b2*v_i + (1-b2)*mean_j O_ij**2``; ``X_ij = O_ij/(sqrt(v_i) + 1e-8)``;
       ``X <- X*norm(O)/norm(X)``;
    4. ``W <- (1 - lr*weight_decay)*W - lr*sqrt(A/B)*X``; with ``decay="cautious"`` only entries
       with ``W*X >= 0`` decay.

    Choose it where learning rates shall carry over between widths; ``normuon`` is the authors' own
    form, which a byte model did not learn faster with than with Muon
    (``python -m benchmarks.claims normuon``); this one is not compared here. Extra matrix work of a
    step: that of ``optkit.muon``, 5 Newton-Schulz steps of ``4*m**2*n + 2*m**3`` FLOPs for an m x n
    matrix, m the shorter side, or its Gram form; beyond it about ``3*A*B`` operations.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the heavy ball.
      nesterov: look one step ahead.
      b2: decay rate of the second moment.
      coefficients: "polar_express_1p02" or, in the library's other setting, "quintic_you".
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-8); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: "rms_op" (the library's spectral_norm), "match_rms" (its rms_norm) or "none".
      weight_decay: coefficient for the matrices, and for AdamW.
      decay: "decoupled" or "cautious" (or another kind of ``optkit.decay_weights``).
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments but ``v``; float32 for 16-bit parameters if None.
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
      >>> params = {"dense": {"kernel": jnp.array([[3.0, 0.0], [1.0, 2.0]])}}
      >>> tx = optkit.normuon_dion(1.0, weight_decay=0.0, method="svd")
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> jnp.linalg.norm(u["dense"]["kernel"], axis=0).round(3).tolist()  # of each neuron
      [1.0, 1.0]

    Reference:
      Li et al., NorMuon, arXiv 2510.05491; Ahn et al., Dion, arXiv 2504.05295 (its library's
      NorMuon, which on row-sharded parameters rescales each shard by itself).
    """
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adam_for_the_rest(
        other, rate, eps=adam_eps, state_dtype=state_dtype, weight_decay=weight_decay
    )
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    given = {"coefficients": coefficients, "steps": steps, "eps": eps, "dtype": dtype}
    given |= {**reading, "group_bytes": group_bytes, "sharding": sharding}
    links = (
        momentum(b1, kind="heavy_ball", nesterov=nesterov, state_dtype=state_dtype),
        *_orthogonal_rows(method, given, b2=b2, eps=1e-8),
        scale_by_shape(scale, **reading),
    )
    return matrix_recipe(
        "normuon_dion",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        **reading,
    )
