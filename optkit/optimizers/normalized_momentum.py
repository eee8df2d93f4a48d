"""Momentum divided by its norm over all parameters."""

from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, momentum
from optkit.transforms.guards import to_unit_norm
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="momentum",
    paper=("Bilevel Optimization under Unbounded Smoothness", "2401.09587", 2024),
    state_bytes={"*": 4},
    tags=("normalized", "unbounded smoothness", "bilevel"),
    chain="momentum > u/|u| over all leaves > decay > learning rate",
)
def normalized_momentum(
    learning_rate: ScalarOrSchedule = 1e-2,
    *,
    b1: ScalarOrSchedule = 0.9,
    eps: float = 1e-10,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Steps of one length in the direction of the momentum, whatever the size of the gradient.

    1. ``m <- b1*m + (1-b1)*g``;
    2. ``p <- (1 - lr*weight_decay)*p - lr*m/(norm(m) + eps)``, the norm over all leaves together.

    All parameters together move by ``lr`` a step, so that a learning rate has to fall for the last
    digits. ``optkit.lion_k(kind="lp", p=2)`` takes the norm of each leaf by itself. Extra work: one
    sum of squares over the momentum.

    When to choose it: where the curvature grows with the gradient, as in recurrent networks, so
    that no learning rate of plain SGD fits everywhere; it is the upper level of the paper's bilevel
    method BO-REP. Convergence under unbounded smoothness is the paper's theorem; here an objective
    is tested on which SGD of the same learning rate diverges.

    Args:
      learning_rate: length of a step over all parameters, a number or a schedule.
      b1: decay rate of the momentum.
      eps: added to the norm, in units of the gradient; 0 divides safely at any scale.
      weight_decay: coefficient; not in the paper.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of ``m``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"a": jnp.zeros(1), "b": jnp.zeros(1)}, optkit.normalized_momentum(0.5)
      >>> g = {"a": jnp.array([3e9]), "b": jnp.array([4e9])}
      >>> u, _ = tx.update(g, tx.init(params), params)
      >>> [round(float(u[name][0]), 4) for name in ("a", "b")]
      [-0.3, -0.4]

    Reference:
      Hao et al., Bilevel Optimization under Unbounded Smoothness, arXiv 2401.09587. Its refined
      initialisation and lower-level steps are a training loop's and not part of this.
    """
    check_number("eps", eps, low=0.0)
    direction = optax.chain(momentum(b1, state_dtype=state_dtype), to_unit_norm(eps))
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
