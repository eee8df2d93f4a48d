"""MARS-AdamW: Adam on a variance-reduced gradient."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._mars import MATRICES, PAPER, mars_recipe
from optkit.transforms import Transformation, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import RuleLike, Selector


@register(
    kind="recipe",
    family="adaptive",
    paper=PAPER,
    state_bytes={"*": 12, "norm": 8, "bias": 8},
    tags=("mars", "variance reduction", "adam"),
    chain="variance_reduce > clip_leaf_norm > scale_by_adam > decay > learning rate; "
    "adamw on norms and biases",
)
def mars_adamw(
    learning_rate: ScalarOrSchedule = 3e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-8,
    gamma: ScalarOrSchedule = 0.025,
    clip: float | None = 1.0,
    exact: bool = False,
    amsgrad: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    optimize_1d: bool = False,
    matrices: Selector = MATRICES,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    adam_weight_decay: ScalarOrSchedule = 0.1,
    other: optax.GradientTransformation | None = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW on gradients from which the change since the last step has taken part of the noise.

    For matrices, embeddings and heads:

    1. ``c = g + gamma*b1/(1-b1)*(g - last)``; ``last <- g``;
    2. ``c <- c/max(1, norm(c)/clip)``, each leaf by itself, and each layer of a scanned stack;
    3. ``m <- b1*m + (1-b1)*c``; ``v <- b2*v + (1-b2)*c**2``, of ``c`` and not of ``g``;
    4. ``u = (m/c1) / (sqrt(v/c2) + eps)``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``; with ``amsgrad`` the
       largest ``v`` so far instead of ``v``;
    5. ``p <- (1 - lr*weight_decay)*p - lr*u``.

    Norms and biases go to AdamW with betas of its own; with ``optimize_1d`` they are treated like
    the rest.

    Without matrix work: a norm a leaf is all that it computes beyond AdamW, ``2*size`` FLOPs.
    Choose it over ``adamw`` where batches are small and memory for a third buffer is there;
    ``mars_m`` and ``mars_shampoo`` have Muon's direction. The paper claims 2.849 against AdamW's
    2.885 in validation loss for GPT-2 small. On a small byte language model at equal tokens it ends
    at 2.204 against AdamW's 2.237, and at 2.182 with ``exact``; but the variance of the momentum,
    which the correction is there to lower, is 9.7% higher than AdamW's, and 0.7% with ``exact``
    (``python -m benchmarks.claims mars``).

    Args:
      learning_rate: step of matrices, embeddings and heads; the paper's small GPT-2: 6e-3.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root, of plain AdamW as well.
      gamma: strength of the correction.
      clip: largest norm of ``c``; None for none. Adam forgets the size of gradients that are all
        clipped: what counts is that a long one weighs no more than others.
      exact: take ``last`` from ``tx.update(..., prev_grad=...)``: the gradient of this batch at the
        parameters before the last update. Saves a buffer and costs a gradient.
      amsgrad: divide by the root of the largest second moment, torch's form, for all leaves.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: those of the leaves named first that decay.
      optimize_1d: MARS for every leaf.
      matrices: selector of the leaves that MARS serves. The reference takes rank 2 exactly:
        ``lambda path, leaf: leaf.ndim == 2``; convolutions are AdamW's there.
      adam_learning_rate: step of plain AdamW on the other leaves; None for ``learning_rate``. The
        reference's ``lr_1d`` is a ratio to ``lr``: multiply a schedule by it.
      adam_b1: decay rate of the first moment there.
      adam_b2: decay rate of the second moment there.
      adam_weight_decay: decay there.
      other: a whole optimizer for the other leaves instead.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments and of ``last``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 12 per parameter that MARS serves,
      8 with ``exact``; 8 per other parameter; with ``amsgrad`` 4 more everywhere.

    Raises:
      ValueError: an option out of range, or ``optimize_1d`` with an optimizer or a learning rate
        for the other leaves; ``exact`` without ``prev_grad``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(2), "bias": jnp.ones(2)}}
      >>> tx = optkit.mars_adamw(0.5, adam_weight_decay=0.0)
      >>> u, state = tx.update(params, tx.init(params), params)
      >>> u["dense"]["kernel"].round(3).tolist()
      [[-0.5, -0.0], [-0.0, -0.5]]
      >>> [(row.path, row.state_bytes) for row in optkit.plan(tx, params).rows]
      [('dense/bias', 16), ('dense/kernel', 48)]

    Reference:
      Yuan et al., MARS, arXiv 2411.10438, and its code, which starts with ``last = 0``: the first
      ``c`` is ``(1 + gamma*b1/(1-b1))*g``, where the paper has ``g``
      (``optkit.variance_reduce(start="gradient")``). Its exact mode keeps the second gradient; here
      the caller hands it over. It clips leaves only; we clip the layers of a stack one by one.
    """
    return mars_recipe(
        "mars_adamw",
        scale_by_adam(b1, b2, eps, amsgrad="torch" if amsgrad else None, state_dtype=state_dtype),
        learning_rate,
        b1=b1,
        gamma=gamma,
        clip=clip,
        exact=exact,
        amsgrad=amsgrad,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        optimize_1d=optimize_1d,
        matrices=matrices,
        adam_learning_rate=adam_learning_rate,
        adam_betas=(adam_b1, adam_b2),
        adam_eps=eps,
        adam_weight_decay=adam_weight_decay,
        other=other,
        roles=roles,
        state_dtype=state_dtype,
    )
