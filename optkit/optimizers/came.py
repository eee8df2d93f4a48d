"""CAME: Adafactor with momentum whose steps shrink where they waver."""

from collections.abc import Sequence
from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_came
from optkit.transforms.came import CAME_BYTES
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="memory",
    paper=("CAME: Confidence-guided Adaptive Memory Efficient Optimization", "2307.02047", 2023),
    state_bytes={"*": CAME_BYTES},
    tags=("adafactor", "factored", "confidence"),
    chain="scale_by_came > decay > learning rate",
)
def came(
    learning_rate: ScalarOrSchedule = 2e-4,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    eps: ScalarOrSchedule = 1e-30,
    eps2: ScalarOrSchedule = 1e-16,
    clip_threshold: ScalarOrSchedule = 1.0,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """Adafactor's direction averaged, and divided by how far it is from its average.

    1. u as ``optkit.adafactor`` has it, with averages of constant rate ``b2``, clipped;
    2. ``m <- b1*m + (1-b1)*u``; the means of ``(u - m)**2`` over rows and columns, rate ``b3``;
    3. ``W <- (1 - lr*weight_decay)*W - lr*m/sqrt(those, factored)``.

    Choose it for Adam's momentum at half of Adam's state. Evidence: training BERT, T5 and GPT-2 as
    well as Adam or better is the paper's claim. In ``python -m benchmarks.claims memory_lm``, a
    byte language model and 250 steps, it is not as good: 1.2% above AdamW, with 51.2% of its state,
    and 6.7% above one whose matrices have a quarter of the rate.

    Args:
      learning_rate: a number or a schedule; the authors' are 2e-4 to 2e-3.
      b1: decay rate of m.
      b2: decay rate of the second moments.
      b3: decay rate of the squared distances.
      eps: added to squares.
      eps2: added to squared distances.
      clip_threshold: root mean square that u may have.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      dims: which axes are input and output, see ``optkit.scale_by_came``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of m; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per parameter and 8 per row and
      per column of a matrix; 8 per parameter of other leaves.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((512, 1024)), "bias": jnp.ones(1024)}}
      >>> optkit.plan(optkit.came(), params).rows[1].state_bytes  # 4 * 512 * 1024 + 8 * 1536
      2109440

    Reference:
      Luo et al., CAME, arXiv 2307.02047.
    """
    direction = scale_by_came(
        b1,
        b2,
        b3,
        eps,
        eps2,
        clip_threshold=clip_threshold,
        dims=dims,
        roles=roles,
        state_dtype=state_dtype,
    )
    return descend(
        direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask, roles=roles
    )
