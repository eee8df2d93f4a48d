"""Cautious AdamW, Lion and Muon: updates that disagree with the gradient are dropped."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.optimizers._shared import matrix_recipe
from optkit.transforms import (
    Transformation,
    blend_momentum,
    cautious,
    descend,
    momentum,
    orthogonalize,
    scale_by_adam,
    scale_by_kappa,
    scale_by_shape,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike
from optkit.tree.costs import Sharding

_PAPER = ("Cautious Optimizers: Improving Training with One Line of Code", "2411.16085", 2024)


@register(
    kind="recipe",
    family="adaptive",
    paper=_PAPER,
    state_bytes={"*": 8},
    tags=("cautious", "adam"),
    chain="cautious(scale_by_adam) > decay > learning rate",
)
def cautious_adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW that moves only the entries whose momentum agrees with the gradient.

    1. ``m``, ``v`` as Adam; ``u = m*sqrt(c2)/c1 / (sqrt(v) + eps)``;
    2. ``k = 1[u*g > 0]``; ``k <- k/max(mean(k), 1e-3)`` per leaf;
    3. ``p <- (1 - lr*weight_decay)*p - lr*u*k``.

    No matrix work: a mask and its mean. Choose it where AdamW is tuned and a swap has to be free.
    Evidence: 1.47 times fewer samples at best is the paper's claim. In
    ``python -m benchmarks.claims cautious``, a small byte language model, it ends 0.045 below
    AdamW, both at their best rate, and reaches AdamW's last loss in 340 of 400 steps.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the uncorrected root, as the reference's single-tensor path does.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(2)}, optkit.cautious_adamw(0.5)
      >>> tx.update({"w": jnp.array([2.0, 1.0])}, tx.init(params), params)[0]["w"].round(3).tolist()
      [-0.5, -0.5]

    Reference:
      Liang et al., Cautious Optimizers, arXiv 2411.16085.
    """
    adam = scale_by_adam(b1, b2, eps, eps_mode="uncorrected", state_dtype=state_dtype)
    # The first moment has the update's sign, and is at hand: the update need not be kept for it.
    direction = cautious(adam, compare="mu")
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)


@register(
    kind="recipe",
    family="sign",
    paper=_PAPER,
    state_bytes={"*": 4},
    tags=("cautious", "sign", "lion"),
    chain="cautious(lion) > decay > learning rate",
)
def cautious_lion(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: ScalarOrSchedule = 0.95,
    b2: ScalarOrSchedule = 0.98,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Lion that moves only the entries whose sign agrees with the gradient.

    1. ``u = sign(b1*m + (1-b1)*g)``; 2. ``k = 1[u*g > 0]``; ``k <- k*size/(sum(k) + 1)`` per leaf;
    3. ``p <- (1 - lr*weight_decay)*p - lr*u*k``; 4. ``m <- b2*m + (1-b2)*g``.

    Args:
      learning_rate: a number or a schedule.
      b1: weight of the old momentum in the update.
      b2: decay rate of the momentum.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of ``m``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(3)}, optkit.cautious_lion(1.0)
      >>> tx.update({"w": jnp.array([1.0, 2.0, 0.0])}, tx.init(params), params)[0]["w"].tolist()
      [-1.0, -1.0, -0.0]

    Reference:
      Liang et al., Cautious Optimizers, arXiv 2411.16085.
    """
    direction = optax.chain(blend_momentum(b1, b2, state_dtype=state_dtype), scale_by_kappa("l1"))
    return descend(
        cautious(direction, rescale="count"),
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
    )


@register(
    kind="recipe",
    family="matrix",
    paper=_PAPER,
    state_bytes={"matrix": 4, "stacked": 4, "expert": 4, "conv": 4, "*": 8},
    tags=("cautious", "muon", "newton-schulz"),
    chain="cautious(momentum) > orthogonalize > scale_by_shape > decay > lr; cautious adam",
)
def cautious_muon(
    learning_rate: ScalarOrSchedule = 0.02,
    *,
    b1: ScalarOrSchedule = 0.95,
    nesterov: bool = True,
    coefficients: str | Sequence[Sequence[float]] = "jordan",
    steps: int | None = None,
    eps: float | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    adam_learning_rate: ScalarOrSchedule = 3e-4,
    adam_b1: ScalarOrSchedule = 0.9,
    adam_b2: ScalarOrSchedule = 0.95,
    adam_eps: ScalarOrSchedule = 1e-10,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    other: optax.GradientTransformation | None = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
    dtype: Any | None = None,
    group_bytes: int | None = None,
    sharding: Sharding = "auto",
) -> Transformation:
    """Muon whose momentum is masked by the gradient before it is orthogonalized.

    For hidden matrices, with A = fan_out and B = fan_in:

    1. ``m <- b1*m + (1-b1)*g``; ``k = 1[m*g > 0]``; ``k <- k/max(mean(k), 1e-3)`` per leaf;
    2. ``u = ((1-b1)*g + b1*m)*k``; ``O = NS(u)*sqrt(max(1, A/B))``, not masked again;
    3. ``W <- (1 - lr*weight_decay)*W - lr*O``.

    All other leaves go to Adam with the same mask on its own update.

    Extra matrix work of a step: that of ``optkit.muon``, 5 Newton-Schulz steps of
    ``4*m**2*n + 2*m**3`` FLOPs for an m x n matrix, m the shorter side, or its Gram form; the mask
    and its mean take none.

    Choose it as Muon, to see whether a mask helps: the evidence is thin.
    ``python -m benchmarks.claims cautious`` has the mask on AdamW,
    ``python -m benchmarks.claims muon`` has Muon without it; no table here has both.

    Args:
      learning_rate: step of the matrices, a number or a schedule.
      b1: decay rate of the momentum.
      nesterov: look one step ahead.
      coefficients: Newton-Schulz coefficients, a name or rows.
      steps: Newton-Schulz steps; None for the set's own number.
      eps: added to the norm; None divides safely at any scale.
      weight_decay: coefficient for the matrices.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: matrices that decay.
      adam_learning_rate: step of Adam on the other leaves.
      adam_b1: its first decay rate.
      adam_b2: its second decay rate.
      adam_eps: its eps.
      adam_weight_decay: its decay.
      other: a whole optimizer for the other leaves instead.
      dims: which axes are input and output, see ``optkit.orthogonalize``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of the moments; float32 for 16-bit parameters if None.
      dtype: dtype of the iteration; None for float32.
      group_bytes: bytes of one stack of matrices.
      sharding: how their work is spread over a mesh, see ``optkit.orthogonalize``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per matrix parameter, else 8.

    Raises:
      ValueError: an option out of range; at init a leaf that cannot be read as ``dims`` says.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"dense": {"kernel": jnp.eye(4)}}, optkit.cautious_muon(1.0)
      >>> u, _ = tx.update(params, tx.init(params), params)
      >>> bool(0.65 < -u["dense"]["kernel"][0, 0] < 1.21)
      True

    Reference:
      Liang et al., Cautious Optimizers, arXiv 2411.16085 (its repository's c_muon).
    """
    links = (
        cautious(momentum(b1, nesterov=nesterov, state_dtype=state_dtype), compare="momentum"),
        orthogonalize(
            coefficients=coefficients,
            steps=steps,
            eps=eps,
            dims=dims,
            roles=roles,
            dtype=dtype,
            group_bytes=group_bytes,
            sharding=sharding,
        ),
        scale_by_shape("max1", dims=dims, roles=roles),
    )
    rest = ("other", other)
    if other is None:
        adam = cautious(scale_by_adam(adam_b1, adam_b2, adam_eps, state_dtype=state_dtype))
        adamw = descend(adam, adam_learning_rate, weight_decay=adam_weight_decay)
        rest = ("cautious_adamw", adamw)
    return matrix_recipe(
        "cautious_muon",
        links,
        learning_rate,
        rest,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
