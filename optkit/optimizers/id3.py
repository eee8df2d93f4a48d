"""ID3: AdamW on a budget of entries that grows step by step."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from optkit import masks
from optkit.catalogue import register
from optkit.masks.policy import Rest
from optkit.transforms import (
    Transformation,
    decay_weights,
    descend,
    in_float32,
    scale_by_adam,
    scale_by_learning_rate,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask
from optkit.tree import RuleLike, Selector


@register(
    kind="recipe",
    family="masks",
    paper=("Step-by-Step Unmasking for Parameter-Efficient Fine-tuning", "2408.14470", 2024),
    state_bytes={"*": 9},
    tags=("adam", "sparsity", "fine-tuning", "mask"),
    chain="id3 mask > scale_by_adam > decay > learning rate",
    example={"budget": 1.0, "steps": 4},
)
def id3(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    budget: float | int | jax.Array = 0.01,
    steps: int | jax.Array = 1000,
    exp: ScalarOrSchedule = 0.5,
    metric_eps: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decay_masked: bool = False,
    mask: Mask = None,
    where: Selector = "**",
    rest: Rest = "freeze",
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW that unmasks a budget of entries step by step, where gradients are large.

    With ``t`` the number of finished updates, ``n = t+1`` and ``c = 1-b**n``:

    1. over all leaves, the ``budget // steps`` masked entries (one more while
       ``t < budget % steps``) of largest ``|g| / (metric_eps + |p|)**exp`` begin to train; from
       ``t = steps`` on none does;
    2. ``g <- 0`` where masked; ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    3. ``p <- p - lr*((mu/c1) / (sqrt(nu/c2) + eps) + weight_decay*p)``; masked entries stay bit for
       bit, unless ``decay_masked`` lets the decay act on them too.

    Extra work: while entries are unmasked 32 comparisons a parameter, which find one cutoff for all
    leaves. When to choose: fine-tuning where few weights may change, or be shipped; moments are
    whole arrays, so that memory is not saved. That half of the updated gradients give the accuracy
    of a fixed mask of the whole budget is the paper's claim; not reproduced here.

    Args:
      learning_rate: a number or a schedule.
      budget: entries that train in the end: a number, or a share of all masked leaves.
      steps: over how many steps they are unmasked.
      exp: how much small weights are preferred; 0 to 1 in the paper.
      metric_eps: added to the weight in the score.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to Adam's root.
      weight_decay: coefficient, of decoupled decay.
      decay_masked: decay masked entries too, as the reference does with torch's AdamW.
      mask: leaves that decay.
      where: leaves that are masked.
      rest: what becomes of other leaves, "train" or "freeze".
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of both moments; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter and 1 for
      the mask.

    Raises:
      ValueError: an option out of range, a budget larger than the masked leaves, or params not
        given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.id3(0.1, budget=2, steps=2)
      >>> params, g = {"w": jnp.ones(3)}, {"w": jnp.array([1.0, 3.0, 2.0])}
      >>> u, _ = tx.update(g, tx.init(params), params)
      >>> u["w"].round(3).tolist()
      [0.0, -0.1..., 0.0]

    Reference:
      Step-by-Step Unmasking, arXiv 2408.14470, code at Aradhye2002/selective-peft-toolkit. Where
      scores are equal its code masks the first trained entries of a leaf again; here they stay.
    """
    policy = masks.id3(budget, steps, exp=exp, eps=metric_eps, where=where, rest=rest, roles=roles)
    direction = scale_by_adam(b1, b2, eps, state_dtype=state_dtype)
    if not decay_masked:
        inner = descend(direction, learning_rate, weight_decay=weight_decay, mask=mask, roles=roles)
        return masks.update_mask(inner, policy, state="zero")
    return in_float32(
        optax.chain(
            masks.update_mask(direction, policy, state="zero"),
            decay_weights(weight_decay, mask=mask, roles=roles),
            scale_by_learning_rate(learning_rate),
        )
    )
