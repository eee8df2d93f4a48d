"""MARS-Shampoo: Muon's orthogonal step on MARS's variance-reduced gradient."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._shared import Route, adam_for_the_rest, matrix_recipe
from optkit.transforms import (
    Transformation,
    clip_leaf_norm,
    descend,
    momentum,
    orthogonalize,
    scale_by_adam,
    scale_by_shape,
    variance_reduce,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.orthogonalize import Method
from optkit.transforms.shape_scale import Mode
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding


@register(
    kind="recipe",
    family="matrix",
    paper=(
        "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
        "2411.10438",
        2024,
    ),
    state_bytes={"*": 8},
    tags=("mars", "variance reduction", "shampoo", "muon", "newton-schulz"),
    chain="variance_reduce > clip_leaf_norm > heavy ball > orthogonalize > max1 > decay > lr; "
    "adamw on the rest",
)
def mars_shampoo(
    learning_rate: ScalarOrSchedule = 3e-3,
    *,
    b1: ScalarOrSchedule = 0.95,
    gamma: ScalarOrSchedule = 0.025,
    clip: float | None = 1.0,
    exact: bool = False,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    method: Method = "auto",
    scale: Mode = "max1",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    optimize_1d: bool = False,
    b2: float = 0.99,
    amsgrad: bool = False,
    adam_learning_rate: ScalarOrSchedule | None = None,
    adam_eps: float = 1e-8,
    adam_weight_decay: ScalarOrSchedule = 0.1,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon on gradients from which MARS has taken part of the noise; Shampoo without accumulation.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``c = g + gamma*b1/(1-b1)*(g - last)``; ``last <- g``;
    2. ``c <- c/max(1, norm(c)/clip)``, each matrix by itself;
    3. ``m <- b1*m + c``; ``O = NS(m)*sqrt(max(1, A/B))``, without Nesterov;
    4. ``W <- (1 - lr*weight_decay)*W - lr*O``.

    All other leaves go to AdamW with betas (0.9, 0.95); with ``optimize_1d`` to MARS-AdamW: steps 1
    and 2 leaf by leaf, then AdamW with betas (b1, b2), the learning rate and decay of the matrices.

    Extra matrix work: that of ``muon``, and the norm of ``c``, ``2*A*B`` FLOPs. Choose it over
    ``muon`` where batches are small and memory for a second buffer is there; ``optkit.mars_m`` has
    AdamW-sized updates instead and is the authors' later choice. The paper's headline runs are of
    MARS-AdamW; nothing of it is reproduced here.

    Args:
      learning_rate: step of the matrices, a number or a schedule; the paper's small GPT-2: 6e-3.
      b1: decay rate of the momentum.
      gamma: strength of the correction.
      clip: largest norm of ``c``; None for none.
      exact: take ``last`` from ``tx.update(..., prev_grad=...)``: the gradient of this batch at the
        parameters before the last update. Saves a buffer and costs a gradient.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm (the reference: 1e-8); None divides safely at any scale.
      method: how to orthogonalize, see ``optkit.orthogonalize``.
      scale: shape factor, see ``optkit.scale_by_shape``.
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      optimize_1d: MARS-AdamW on the other leaves.
      b2: decay rate of the second moment there.
      amsgrad: either AdamW divides by the root of the largest second moment, torch's form.
      adam_learning_rate: step of plain AdamW on the other leaves; None for ``learning_rate``. The
        reference's ``lr_1d`` is a ratio to ``lr``: multiply a schedule by it.
      adam_eps: eps of either AdamW.
      adam_weight_decay: decay of plain AdamW.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments and of ``last``; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32. The reference iterates in bfloat16.
      group_bytes: bytes of one stack of matrices.
      sharding: "auto", "layer" or "replicate", see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter; 4 per matrix
      parameter with ``exact``; 12 per other parameter with ``optimize_1d`` (8 if exact), and 4 more
      with ``amsgrad``.

    Raises:
      ValueError: an option out of range, or ``optimize_1d`` with an optimizer or a learning rate
        for the other leaves; at init a leaf that cannot be read as ``dims`` says; ``exact``
        without ``prev_grad``.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.eye(4)}}
      >>> tx = optkit.mars_shampoo(0.5, method="svd")
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> float(u["dense"]["kernel"][0, 0])
      -0.5

    Reference:
      Yuan et al., MARS, arXiv 2411.10438, and its code, which starts with ``last = 0``: the first
      ``c`` is ``(1 + gamma*b1/(1-b1))*g``, where the paper has ``g``
      (``optkit.variance_reduce(start="gradient")``). It takes 2-D leaves only, convolutions going
      to AdamW; we take convolutions, stacks and experts as matrices unless ``dims`` says None.
    """
    averages = [variance_reduce(gamma, b1, exact=exact, state_dtype=state_dtype)]
    if clip is not None:
        averages.append(clip_leaf_norm(clip, per="matrix", dims=dims, roles=roles))
    links = (
        *averages,
        # The reference's m/(1-b1), to which its eps is relative.
        momentum(b1, kind="heavy_ball", state_dtype=state_dtype),
        orthogonalize(
            method,
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            dims=dims,
            roles=roles,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
        ),
        scale_by_shape(scale, dims=dims, roles=roles),
    )
    # Built either way, so that a wrong value of any option is answered.
    form: Any = "torch" if amsgrad else None
    mars = scale_by_adam(b1, b2, adam_eps, amsgrad=form, state_dtype=state_dtype)
    rest: Route = adam_for_the_rest(
        other,
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        eps=adam_eps,
        amsgrad=form,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    if optimize_1d:
        if other is not None or adam_learning_rate is not None:
            raise ValueError(
                "optimize_1d=True trains the other leaves by MARS-AdamW at learning_rate; leave "
                "out other and adam_learning_rate, or give optimize_1d=False"
            )
        parts = [variance_reduce(gamma, b1, exact=exact, state_dtype=state_dtype)]
        parts += [] if clip is None else [clip_leaf_norm(clip)]
        reduced = optax.chain(*parts, mars)
        rest = "mars_adamw", descend(reduced, learning_rate, weight_decay=weight_decay)
    return matrix_recipe(
        "mars_shampoo",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
