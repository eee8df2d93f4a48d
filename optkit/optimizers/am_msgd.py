"""AM-MSGD: momentum SGD whose coefficient follows the gradients."""

from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, adaptive_memory, descend
from optkit.transforms.adaptive_memory import PAPER
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=PAPER,
    state_bytes={"*": 4},
    tags=("momentum", "adaptive momentum", "sgd"),
    chain="decay > adaptive_memory > learning rate",
)
def am_msgd(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    b1: ScalarOrSchedule = 0.9,
    lam: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "coupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """SGD with a momentum whose coefficient is computed anew at each step, one for all leaves.

    1. ``g <- g + weight_decay*p``;
    2. ``beta = clip((1 + lam)*|g|^2/|d - g|^2 - lam, 0, b1)``;
    3. ``d <- (beta + lam)/(1 + lam)*d + (1 - beta)/(1 + lam)*g``, at the first update ``d = g``;
    4. ``p <- p - lr*d``.

    Without matrix work: two sums over all leaves beyond SGD with momentum, 10 FLOPs a parameter,
    and two more readings of the gradient and ``d``. Choose it over SGD with momentum to have one
    number less to tune. The paper claims that it beats the best fixed momentum on convex problems
    and images. In ``python -m benchmarks.claims adaptive_memory`` it does not: on digits its
    training loss ends 6% above that of the best fixed coefficient in logistic regression, and 54%
    above it in a perceptron.

    Args:
      learning_rate: a number or a schedule; the coefficient does not depend on it.
      b1: largest coefficient.
      lam: weight of the penalty on leaving the old direction.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; only a coupled one is seen by ``beta``.
      mask: leaves that decay; the recorded runs leave out those of rank 1 and 0.
      state_dtype: dtype of ``d``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(1)}, optkit.am_msgd(1.0, lam=0.0)
      >>> state = tx.init(params)
      >>> for g in (2.0, 1.0, 0.4):
      ...   u, state = tx.update({"w": jnp.array([g])}, state, params)
      ...   print(round(float(u["w"][0]), 3))
      -2.0
      -1.9
      -0.507

    Reference:
      Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization, arXiv
      2510.04988. No code of its authors is public; the defaults are a third party's.
    """
    direction = adaptive_memory(b1, lam=lam, state_dtype=state_dtype)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
