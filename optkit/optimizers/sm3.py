"""SM3: AdaGrad's steps at the memory of rows and columns."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, momentum, scale_by_sm3
from optkit.transforms.factored import FACTORED
from optkit.transforms.hyperparams import Scalar, ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="memory",
    paper=("Memory-Efficient Adaptive Optimization", "1901.11150", 2019),
    state_bytes={"*": FACTORED},
    tags=("adagrad", "factored"),
    chain="scale_by_sm3 > momentum > decay > learning rate",
)
def sm3(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    b1: ScalarOrSchedule = 0.0,
    b2: Scalar | None = None,
    eps: ScalarOrSchedule = 1e-30,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """AdaGrad whose sums of squares are bounded by one number a row and one a column.

    1. ``u = g/sqrt(v + eps)`` with v of ``optkit.scale_by_sm3``;
    2. with ``b1`` ``m <- b1*m + (1-b1)*u``; ``u = m``;
    3. ``W <- (1 - lr*weight_decay)*W - lr*u``.

    Choose it for sparse gradients, as of embeddings, where AdaGrad would do and its state would
    not fit. Evidence: Adam's quality in translation at a batch twice as large is the paper's claim.

    Args:
      learning_rate: a number or a schedule; steps fall by themselves.
      b1: average of the directions, 4 bytes per parameter; 0 for none. The paper has 0.9.
      b2: decay rate of an average instead of a sum; None for the sum.
      eps: added inside of the root.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      dims: which axes are input and output, see ``optkit.scale_by_sm3``.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of m and of leaves' own v; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per row and per column of a
      matrix and 4 per parameter of other leaves; 4 per parameter more with ``b1``.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params = {"dense": {"kernel": jnp.ones((512, 1024))}}
      >>> optkit.plan(optkit.sm3(), params).rows[0].state_bytes
      6144

    Reference:
      Anil et al., SM3, arXiv 1901.11150; ``optax.sm3`` always keeps a momentum.
    """
    links = [scale_by_sm3(b2, eps=eps, dims=dims, roles=roles, state_dtype=state_dtype)]
    if not (isinstance(b1, int | float) and b1 == 0):
        links.append(momentum(b1, state_dtype=state_dtype))
    return descend(
        optax.chain(*links),
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        roles=roles,
    )
