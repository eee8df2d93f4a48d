"""signSGD and Signum."""

from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, momentum, scale_by_kappa
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="sign",
    paper=("signSGD: Compressed Optimisation for Non-Convex Problems", "1802.04434", 2018),
    state_bytes={"*": 0},
    tags=("sign",),
    chain="sign > decay > learning rate",
)
def signsgd(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
) -> Transformation:
    """The sign of the gradient: no state.

    ``p <- (1 - lr*weight_decay)*p - lr*sign(g)``, with ``sign(0) = 0``.

    Of several workers ``optkit.aggregate.majority_vote`` makes one gradient of signs, which this
    leaves as it is.

    Args:
      learning_rate: a number or a schedule; 1e-4 for large networks.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 0.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(2)}, optkit.signsgd(0.5)
      >>> tx.update({"w": jnp.array([7.0, -7.0])}, tx.init(params), params)[0]["w"].tolist()
      [-0.5, 0.5]

    Reference:
      Bernstein et al., signSGD, arXiv 1802.04434.
    """
    direction = scale_by_kappa("l1")
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)


@register(
    kind="recipe",
    family="sign",
    paper=("signSGD: Compressed Optimisation for Non-Convex Problems", "1802.04434", 2018),
    state_bytes={"*": 4},
    tags=("sign",),
    chain="momentum > sign > decay > learning rate",
)
def signum(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """The sign of the momentum.

    1. ``m <- b1*m + (1-b1)*g``; 2. ``p <- (1 - lr*weight_decay)*p - lr*sign(m)``. The paper's heavy
    ball ``m <- b1*m + g`` has the same signs. ``b1 = 0`` is signSGD.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the momentum.
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
      >>> params, tx = {"w": jnp.zeros(2)}, optkit.signum(0.5)
      >>> tx.update({"w": jnp.array([7.0, -7.0])}, tx.init(params), params)[0]["w"].tolist()
      [-0.5, 0.5]

    Reference:
      Bernstein et al., signSGD, arXiv 1802.04434.
    """
    direction = optax.chain(momentum(b1, state_dtype=state_dtype), scale_by_kappa("l1"))
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
