"""Superpositional gradient descent in its classical form."""

from typing import Any

import jax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_adam, sine_modulation
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=("Superpositional Gradient Descent", "2511.01918", 2025),
    state_bytes={"*": 8},
    tags=("superposition", "quantum", "adam"),
    chain="sine_modulation(mu / sqrt(nu + eps)) > decay > learning rate",
)
def superpositional(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    strength: ScalarOrSchedule = 0.5,
    entries: int | jax.Array = 8,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    correct: bool = False,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Adam, and a few entries of each leaf whose gradient is modulated by a sine of the weight.

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``; ``u = mu/sqrt(nu + eps)``;
    2. ``u <- u + strength*sin(pi*p)*g`` on the first ``entries`` entries of each leaf;
    3. ``p <- (1 - lr*weight_decay)*p - lr*u``.

    Extra work: a sine for each parameter. When to choose: to try the method; the circuit that gives
    it its name is not needed for this form. Confidence in our reading is low: we know the rule from
    a second-hand sheet of formulas, and where entries are counted, their number and the decay are
    guesses. That it beats AdamW on text by a point or two is the paper's claim; at eight entries a
    leaf we expect no reliable gain.

    Args:
      learning_rate: a number or a schedule.
      strength: ``lambda``; the paper reports 0.5 as best, and 0 is Adam with eps inside the root.
      entries: of each leaf, in the order in which they lie in memory.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added inside the root.
      correct: divide both moments by the sums of their weights, of which the sheet says nothing.
        Without it the first steps are ``(1-b1)/sqrt(1-b2)`` long, 3.2 with the defaults.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = jnp.array([0.5, 0.5]), optkit.superpositional(1.0, entries=1, correct=True)
      >>> [round(float(x), 3) for x in tx.update(jnp.ones(2), tx.init(params), params)[0]]
      [-1.5, -1.0]

    Reference:
      arXiv 2511.01918, second-hand.
    """
    adam = scale_by_adam(b1, b2, eps, eps_mode="inside", debias=correct, state_dtype=state_dtype)
    direction = sine_modulation(adam, strength, entries=entries)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
