"""Cautious weight decay on AdamW and Lion."""

from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import (
    Transformation,
    blend_momentum,
    descend,
    scale_by_adam,
    scale_by_kappa,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask

_PAPER = ("Cautious Weight Decay", "2510.12402", 2025)


@register(
    kind="recipe",
    family="adaptive",
    paper=_PAPER,
    state_bytes={"*": 8},
    tags=("cautious", "weight decay", "adam"),
    chain="scale_by_adam > cautious decay > learning rate",
)
def cwd_adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.1,
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW that decays an entry only where the step does not enlarge it.

    1. ``u`` as Adam; 2. ``p <- p - lr*(u + weight_decay*1[u*p >= 0]*p)``.

    ``adamw(decay="cautious")`` is the same; the name is the paper's.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient; the base optimizer's value serves.
      mask: leaves that decay.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.array([1.0, -1.0])}, optkit.cwd_adamw(0.5, weight_decay=1.0)
      >>> tx.update({"w": jnp.ones(2)}, tx.init(params), params)[0]["w"].round(4).tolist()
      [-1.0, -0.5]

    Reference:
      Chen et al., Cautious Weight Decay, arXiv 2510.12402; the defaults of the paper were not
      checked (confidence medium).
    """
    direction = scale_by_adam(b1, b2, eps, state_dtype=state_dtype)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay="cautious", mask=mask)


@register(
    kind="recipe",
    family="sign",
    paper=_PAPER,
    state_bytes={"*": 4},
    tags=("cautious", "weight decay", "lion"),
    chain="blend_momentum > sign > cautious decay > learning rate",
)
def cwd_lion(
    learning_rate: ScalarOrSchedule = 1e-4,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    weight_decay: ScalarOrSchedule = 0.1,
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Lion that decays an entry only where the step does not enlarge it.

    1. ``u = sign(b1*m + (1-b1)*g)``; 2. ``p <- p - lr*(u + weight_decay*1[u*p >= 0]*p)``;
    3. ``m <- b2*m + (1-b2)*g``. Entries with ``u = 0`` decay.

    Args:
      learning_rate: a number or a schedule.
      b1: weight of the old momentum in the update.
      b2: decay rate of the momentum.
      weight_decay: coefficient.
      mask: leaves that decay.
      state_dtype: dtype of ``m``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.array([1.0, -1.0])}, optkit.cwd_lion(0.5, weight_decay=1.0)
      >>> tx.update({"w": jnp.ones(2)}, tx.init(params), params)[0]["w"].tolist()
      [-1.0, -0.5]

    Reference:
      Chen et al., Cautious Weight Decay, arXiv 2510.12402.
    """
    direction = optax.chain(blend_momentum(b1, b2, state_dtype=state_dtype), scale_by_kappa("l1"))
    return descend(direction, learning_rate, weight_decay=weight_decay, decay="cautious", mask=mask)
