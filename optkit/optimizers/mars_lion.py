"""MARS-Lion: the sign of a variance-reduced momentum."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._mars import MATRICES, PAPER, mars_recipe
from optkit.transforms import Transformation, momentum, scale_by_kappa
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import RuleLike, Selector


@register(
    kind="recipe",
    family="sign",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("mars", "variance reduction", "sign", "lion"),
    chain="variance_reduce > clip_leaf_norm > momentum > sign > decay > learning rate; "
    "adamw on norms and biases",
)
def mars_lion(
    learning_rate: ScalarOrSchedule = 3e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    gamma: ScalarOrSchedule = 0.025,
    clip: float | None = 1.0,
    exact: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    optimize_1d: bool = False,
    matrices: Selector = MATRICES,
    amsgrad: bool = False,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    adam_eps: ScalarOrSchedule = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.1,
    other: optax.GradientTransformation | None = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """The sign of one momentum of gradients from which MARS has taken part of the noise.

    For matrices, embeddings and heads:

    1. ``c = g + gamma*b1/(1-b1)*(g - last)``; ``last <- g``;
    2. ``c <- c/max(1, norm(c)/clip)``, each leaf by itself, and each layer of a scanned stack;
    3. ``m <- b1*m + (1-b1)*c``: one momentum of one rate, without Lion's second one;
    4. ``p <- (1 - lr*weight_decay)*p - lr*sign(m)``.

    Norms and biases go to AdamW; with ``optimize_1d`` they are treated like the rest.

    With ``clip=None`` and constant ``gamma`` and ``b1`` it is ``optkit.lion`` with the betas
    ``(1-gamma)*b1`` and ``b1``, which needs no ``last``.

    Without matrix work: a norm a leaf is all that it computes beyond Lion, ``2*size`` FLOPs. Choose
    it over ``lion`` where the clip matters, that is where the gradients of single steps are far
    longer than the others; else Lion does the same with half the state. The paper's headline runs
    are of MARS-AdamW, and so is ``python -m benchmarks.claims mars``, where the loss fell and the
    momentum's variance did not; this method was not compared.

    Args:
      learning_rate: step of an entry of matrices, embeddings and heads; the reference's default of
        3e-3 is large for steps of one size.
      b1: decay rate of the momentum.
      gamma: strength of the correction.
      clip: largest norm of ``c``; None for none.
      exact: take ``last`` from ``tx.update(..., prev_grad=...)``: the gradient of this batch at the
        parameters before the last update. Saves a buffer and costs a gradient.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: those of the leaves named first that decay.
      optimize_1d: MARS-Lion for every leaf.
      matrices: selector of the leaves that MARS serves. The reference takes rank 2 exactly:
        ``lambda path, leaf: leaf.ndim == 2``; convolutions are AdamW's there.
      amsgrad: AdamW on the other leaves divides by the root of the largest second moment.
      adam_learning_rate: step of AdamW on the other leaves; None for ``learning_rate``. The
        reference's ``lr_1d`` is a ratio to ``lr``: multiply a schedule by it.
      adam_b1: decay rate of the first moment there.
      adam_b2: decay rate of the second moment there.
      adam_eps: added to the root there.
      adam_weight_decay: decay there.
      other: a whole optimizer for the other leaves instead.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments and of ``last``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter; 4 per parameter
      that MARS serves with ``exact``; 12 per other parameter with ``amsgrad``.

    Raises:
      ValueError: an option out of range, or ``optimize_1d`` with an optimizer or a learning rate
        for the other leaves; ``exact`` without ``prev_grad``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.array([[9.0, -0.1]])}}
      >>> tx = optkit.mars_lion(0.5)
      >>> tx.update(params, tx.init(params), params)[0]["dense"]["kernel"].tolist()
      [[-0.5, 0.5]]

    Reference:
      Yuan et al., MARS, arXiv 2411.10438, and its code, which starts with ``last = 0``. It clips
      leaves only; we clip the layers of a stack one by one.
    """
    return mars_recipe(
        "mars_lion",
        optax.chain(momentum(b1, state_dtype=state_dtype), scale_by_kappa("l1")),
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
        adam_eps=adam_eps,
        adam_weight_decay=adam_weight_decay,
        other=other,
        roles=roles,
        state_dtype=state_dtype,
    )
