"""Schedule-Free AdamW: no horizon, no decay of the learning rate, an average for use."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms import (
    Transformation,
    descend,
    scale_by_adam,
    scale_by_rms,
    schedule_free,
)
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, value_at
from optkit.transforms.step import Decay, Mask


def _warmed(learning_rate: ScalarOrSchedule, steps: Any) -> ScalarOrSchedule:
    """Returns ``lr*min(1, n/steps)``, n counting from 1; the rate itself without a warm-up."""
    if not isinstance(steps, jax.Array) and steps == 0:
        return learning_rate

    def rate(count: jax.Array) -> jax.Array:
        share = (jnp.asarray(count, jnp.float32) + 1.0) / jnp.maximum(steps, 1)
        return value_at(learning_rate, count) * jnp.minimum(1.0, share)

    return rate


@register(
    kind="recipe",
    family="averaging",
    paper=("The Road Less Scheduled", "2405.15682", 2024),
    state_bytes={"*": 8},
    tags=("adam", "schedule-free", "averaging"),
    chain="schedule_free(scale_by_rms > decay > learning rate)",
)
def schedule_free_adamw(
    learning_rate: ScalarOrSchedule = 2.5e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    decay_at: Literal["y", "z"] = "y",
    warmup_steps: int = 0,
    weight_power: float = 0.0,
    weight_lr_power: float = 2.0,
    inner_momentum: ScalarOrSchedule = 0.0,
    keep_average: bool | None = None,
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW whose momentum is an average of its iterates, so that no schedule has to know the end.

    The parameters of the training loop are ``y``; evaluate at
    ``optkit.schedule_free_eval_params(state, params)``. With ``n`` updates, this one counted:

    1. ``lr_n = lr*min(1, n/warmup_steps)``; ``lr_max <- max(lr_max, lr_n)``;
       ``w = n**weight_power * lr_max**weight_lr_power``; ``S <- S + w``; ``c = w/S``;
    2. ``v <- b2*v + (1-b2)*g**2``; ``d = g/(sqrt(v/(1-b2**n)) + eps)``;
    3. ``z <- z - lr_n*(d + weight_decay*y)``;
    4. ``x <- (1-c)*x + c*z``; ``y <- b1*x + (1-b1)*z``.

    Choose it where the length of a run is not known. Evidence: that it matches tuned cosine runs is
    the paper's claim. In ``python -m benchmarks.claims schedule_free``, a byte language model, one
    run has at each of five lengths 0.90 to 0.96 of the bits a byte of a cosine run of AdamW made
    for that length; the loss at ``y`` is within 0.01 bits of that at ``x`` there.

    Args:
      learning_rate: a number, or a schedule that does not fall; 1 to 10 times AdamW's.
      b1: share of the average in ``y``; 0.9 to 0.98.
      b2: decay rate of the second moment.
      eps: added to the root.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      decay_at: which sequence decays, "y" or "z".
      warmup_steps: steps of a linear rise, whose first one is ``lr/warmup_steps``.
      weight_power: r, above 0 to weigh late steps more in the average.
      weight_lr_power: p, by which steps of a small learning rate weigh less.
      inner_momentum: q of an average of the gradient, corrected, in the numerator; 0 keeps none.
      keep_average: see ``optkit.schedule_free``.
      mask: leaves that decay.
      state_dtype: dtype of ``z`` and of the moments.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter, as AdamW;
      12 with an inner momentum or a kept average.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"w": jnp.ones(2)}
      >>> tx = optkit.schedule_free_adamw(0.1)
      >>> u, state = tx.update({"w": jnp.array([2.0, -3.0])}, tx.init(params), params)
      >>> [round(float(x), 4) for x in u["w"]]
      [-0.1, 0.1]

    Reference:
      Defazio et al., The Road Less Scheduled, arXiv 2405.15682; replayed against
      facebookresearch/schedule_free.
    """
    check_number("warmup_steps", warmup_steps, low=0)
    check_number("inner_momentum", inner_momentum, low=0.0, high=1.0, open_high=True)
    rate = _warmed(learning_rate, warmup_steps)
    if isinstance(inner_momentum, int | float) and inner_momentum == 0:
        direction = scale_by_rms(b2, eps, state_dtype=state_dtype)
    else:
        direction = scale_by_adam(inner_momentum, b2, eps, state_dtype=state_dtype)
    return schedule_free(
        descend(direction, rate, weight_decay=weight_decay, decay=decay, mask=mask),
        rate,
        b1=b1,
        weight_power=weight_power,
        weight_lr_power=weight_lr_power,
        decay_at=decay_at,
        keep_average=keep_average,
        state_dtype=state_dtype,
    )
