"""Grams: the gradient's sign with Adam's size."""

from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_adam, sign_from_grad
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=("Grams: Gradient Descent with Adaptive Momentum Scaling", "2412.17107", 2024),
    state_bytes={"*": 8},
    tags=("sign", "adam"),
    chain="sign_from_grad(scale_by_adam) > decay > learning rate",
)
def grams(
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
    """Adam whose direction is the current gradient's sign and whose size is the momentum's.

    1. ``m``, ``v`` as Adam; ``u = m*sqrt(c2)/c1 / (sqrt(v) + eps)``;
    2. ``p <- (1 - lr*weight_decay)*p - lr*sign(g)*|u|``.

    No matrix work. Evidence: a lower loss than Adam's and than that of cautious Adam is the paper's
    claim. In ``python -m benchmarks.claims cautious``, a small byte language model, the first half
    holds: it ends 0.036 below AdamW, at four times its rate; cautious AdamW ends lower still (2.034
    against 2.044).

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the uncorrected root: the official code, where the paper corrects first.
      weight_decay: coefficient; the code decays first, the paper last.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(2)}, optkit.grams(0.5)
      >>> tx.update({"w": jnp.array([2.0, 0.0])}, tx.init(params), params)[0]["w"].round(3).tolist()
      [-0.5, -0.0]

    Reference:
      Cao et al., Grams, arXiv 2412.17107.
    """
    adam = scale_by_adam(b1, b2, eps, eps_mode="uncorrected", state_dtype=state_dtype)
    return descend(
        sign_from_grad(adam), learning_rate, weight_decay=weight_decay, decay=decay, mask=mask
    )
