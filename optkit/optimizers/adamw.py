"""AdamW under optkit's dtype policy."""

from collections.abc import Mapping
from typing import Any, Literal

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=("Decoupled Weight Decay Regularization", "1711.05101", 2017),
    state_bytes={"*": 8},
    tags=("adam",),
    chain="scale_by_adam > decay > learning rate",
)
def adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    eps_mode: Literal["corrected", "uncorrected"] = "corrected",
    nesterov: bool = False,
    weight_decay: ScalarOrSchedule = 1e-4,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """Adam with weight decay apart from the gradient, and float32 statistics for 16-bit parameters.

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    2. ``u = (mu/c1) / (sqrt(nu/c2) + eps)``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``;
    3. ``p <- (1 - lr*weight_decay)*p - lr*u``.

    For float32 parameters it is ``optax.adamw``; for 16-bit ones Optax keeps ``nu`` in 16 bits,
    where it stalls, and an fp16 eps underflows.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root.
      eps_mode: "corrected", or "uncorrected" for the Hugging Face form.
      nesterov: NAdam's look-ahead.
      weight_decay: coefficient; 1e-4 is Optax's default, torch's is 1e-2.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"w": jnp.ones(2)}
      >>> tx = optkit.adamw(0.1, weight_decay=0.0)
      >>> u, _ = tx.update({"w": jnp.array([2.0, -3.0])}, tx.init(params), params)
      >>> [round(float(x), 4) for x in u["w"]]
      [-0.1, 0.1]

    Reference:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, arXiv 1711.05101.
    """
    direction = scale_by_adam(
        b1, b2, eps, eps_mode=eps_mode, nesterov=nesterov, state_dtype=state_dtype
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
