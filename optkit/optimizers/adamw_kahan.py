"""AdamW for bfloat16 parameters without float32 copies of them."""

from collections.abc import Mapping
from typing import Any

from optkit.catalogue import register
from optkit.optimizers.adamw import adamw
from optkit.transforms import Transformation, kahan
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=("Revisiting BFloat16 Training", "2010.06192", 2020),
    state_bytes={"*": 8},
    tags=("adam", "mixed precision", "rounding"),
    chain="kahan(scale_by_adam > decay > learning rate)",
)
def adamw_kahan(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.99,
    eps: ScalarOrSchedule = 1e-6,
    weight_decay: ScalarOrSchedule = 1e-2,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """AdamW whose steps are added to 16-bit parameters with Kahan's compensation.

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    2. ``u = -lr*((mu/c1) / (sqrt(nu/c2) + eps) + weight_decay*p)``;
    3. ``c <- c + u``; ``p' = round(p + c)``; ``c <- c + (p - p')``.

    No matrix work. Take it to train bfloat16 weights in 2 bytes more than plain ones, where
    ``optkit.master_weights`` takes 4. With ``state_dtype=jnp.bfloat16`` all is in 16 bits, as in
    torch-optimi; a second moment in bfloat16 stalls with ``b2`` of 0.999, which is why the default
    is 0.99. Float32 parameters are trained as by ``optkit.adamw``.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root; torch-optimi's 1e-6.
      weight_decay: coefficient; torch-optimi multiplies the rounded parameter, where a decay below
        half a last bit is lost; here it is part of the compensated step.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``; float32 if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per parameter and 2 for one of 16
      bits; 6 in all with 16-bit moments.

    Raises:
      ValueError: an option out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, p = optkit.adamw_kahan(1e-3, weight_decay=0.0), jnp.ones(1, jnp.bfloat16)
      >>> state = tx.init(p)
      >>> for _ in range(100):
      ...   u, state = tx.update(jnp.ones(1, jnp.bfloat16), state, p)
      ...   p = optax.apply_updates(p, u)
      >>> float(p[0])  # a step is an eighth of the last bit
      0.8984375

    Reference:
      Zamirai et al., Revisiting BFloat16 Training, arXiv 2010.06192; torch-optimi 0.3.3, AdamW with
      kahan_sum. There moments are kept debiased, by rates that grow; the quotient is the same.
    """
    own = adamw(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        state_dtype=state_dtype,
    )
    return kahan(own)
