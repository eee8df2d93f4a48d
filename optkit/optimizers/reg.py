"""REG: momentum whose rows and columns are balanced, in place of an orthogonalization."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.linalg.balance import Order
from optkit.optimizers._shared import adam_for_the_rest, matrix_recipe
from optkit.transforms import Transformation, momentum, scale_by_row_col
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=("REG: A Regularization Optimizer for Robust Training Dynamics", "2510.03691", 2025),
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("reg", "equilibration", "confidence low"),
    chain="momentum > scale_by_row_col > decay > learning rate; adamw on the rest",
)
def reg(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = False,
    p: float = 2.0,
    order: Order = "simultaneous",
    exponent: float = 0.5,
    iterations: int | None = None,
    eps: float | None = None,
    update_rms: float = 0.2,
    weight_decay: ScalarOrSchedule = 0.1,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_eps: float = 1e-8,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Momentum with rows and columns divided by roots of their norms; confidence LOW.

    No code was published, and we know the paper by its abstract and by summaries. Known are: a
    first moment only, rows and columns scaled by their p-norms with p = 2 the best, the update
    brought to AdamW's root mean square, decoupled decay, AdamW on the embedding. Order, exponent
    and number of passes are guesses, and therefore options. For hidden matrices:

    1. ``m <- b1*m + (1-b1)*g``;
    2. ``X_ij = m_ij/((r_i + eps)**exponent*(c_j + eps)**exponent)``, r and c being the p-norms of
       the rows and columns of m; or one after the other, and several times, see
       ``optkit.scale_by_row_col``;
    3. ``X <- X*update_rms/rms(X)``;
    4. ``W <- (1 - lr*weight_decay)*W - lr*X``.

    All other leaves go to AdamW with the same decay, betas (0.9, 0.95), or to ``other``. There are
    no products of matrices: about ``6*A*B`` operations a step more than momentum.

    Choose it for fine-tuning a model that AdamW trained, where Muon's flat spectrum is foreign to
    the weights: so the paper (MATH500 64.8 against AdamW's 61.8 on Qwen2.5-Math-1.5B), which we did
    not repeat. Not the RACS of arXiv 2502.07752, which keeps averages of squared row and column
    means of the gradient.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      p: exponent of the norms, at least 1, or ``math.inf``.
      order: "simultaneous", "row_col" or "col_row".
      exponent: power of the norms.
      iterations: passes; None for 1.
      eps: added to the norms, in units of the momentum; None divides safely at any scale.
      update_rms: root mean square of the update per unit of learning rate.
      weight_decay: coefficient for all leaves.
      decay: kind of decay of the matrices.
      mask: matrices that decay.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``.
      adam_eps: eps of AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.array([[100.0, 1.0], [-1.0, 0.01]])}}
      >>> tx = optkit.reg(1.0, weight_decay=0.0)
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> [round(float(x), 3) for x in u["dense"]["kernel"].reshape(-1)]
      [-0.396, -0.04, 0.04, -0.004]

    Reference:
      Liu et al., REG, arXiv 2510.03691; see above for what is not from there.
    """
    reading: dict[str, Any] = {"dims": dims, "roles": roles}
    links = (
        momentum(b1, nesterov=nesterov, state_dtype=state_dtype),
        scale_by_row_col(
            p,
            order=order,
            exponent=exponent,
            iterations=1 if iterations is None else iterations,
            eps=eps,
            update_rms=update_rms,
            group_bytes=group_bytes,
            sharding=sharding,
            **reading,
        ),
    )
    rate = learning_rate if adam_learning_rate is None else adam_learning_rate
    rest = adam_for_the_rest(
        other, rate, eps=adam_eps, state_dtype=state_dtype, weight_decay=weight_decay
    )
    return matrix_recipe(
        "reg",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        **reading,
    )
