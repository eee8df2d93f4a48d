"""CLASSP: small gradients change nothing, and weights that were busy change less."""

from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_gradient_sum, threshold_gate
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.transforms.threshold_gate import Compat, unscaled


@register(
    kind="recipe",
    family="continual",
    paper=(
        "CLASSP: a Biologically-Inspired Approach to Continual Learning through Adjustment "
        "Suppression and Sparsity Promotion",
        "2405.09637",
        2024,
    ),
    state_bytes={"*": 4},
    tags=("classp", "sparsity", "adagrad"),
    chain="threshold_gate > scale_by_gradient_sum > decay > learning rate",
)
def classp(
    learning_rate: ScalarOrSchedule = 0.2,
    *,
    threshold: ScalarOrSchedule = 0.5,
    power: ScalarOrSchedule = 1.0,
    eps: ScalarOrSchedule = 1e-5,
    scaling: bool = True,
    compat: Compat = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Drops gradients below a threshold, and divides the rest by the sum of all that passed.

    1. ``g <- g*1[g**2 > threshold]``;
    2. ``A <- A + abs(g)**power``; ``u = g/(eps + A)**(1/power)``, or ``g`` without ``scaling``;
    3. ``p <- (1 - lr*weight_decay)*p - lr*u``.

    ``threshold=0, power=2`` is AdaGrad with eps inside the root. What lies below the threshold
    stays bit for bit what it was, as long as nothing decays.

    Extra work: a handful of operations per parameter, no matrix products. When to choose: two or
    more tasks in a row without replay, where weights that the first task used much should stay. The
    threshold is in units of squared gradients, so that it has to be chosen with the loss; with
    gradients that never pass it nothing trains. That it forgets less than elastic weight
    consolidation is the paper's claim, whose published code has no working threshold. In
    ``python -m benchmarks.claims forgetting``, two tasks of digits in a row, the mean error of both
    is 3.5%, with SGD 16.5%, and with elastic weight consolidation 4.1%, which is the same within
    the spread over seeds.

    Args:
      learning_rate: a number or a schedule; the paper has 0.2, and 0.025 for text.
      threshold: least square of an entry; the paper has 0.5, and 0.99 for text.
      power: ``q``; the paper's runs have 1, where steps fall as ``1/t``.
      eps: added to the sum.
      scaling: divide by the sum; without it the sum is still kept.
      compat: "official" computes what the reference's code does: a threshold below 1 lets
        everything pass and one from 1 on nothing, and ``A`` sums ``abs(g)`` whatever the power.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of ``A``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range or unknown.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(2)}, optkit.classp(1.0)
      >>> u, _ = tx.update({"w": jnp.array([4.0, 0.5])}, tx.init(params), params)
      >>> [abs(round(float(x), 3)) for x in u["w"]]
      [1.0, 0.0]

    Reference:
      Ludwig, CLASSP, arXiv 2405.09637; the element-wise rule is that of the paper's pseudo-code.
    """
    total = scale_by_gradient_sum(power, eps=eps, compat=compat, state_dtype=state_dtype)
    direction = optax.chain(
        threshold_gate(threshold, compat=compat), total if scaling else unscaled(total)
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
