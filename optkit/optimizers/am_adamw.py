"""AM-AdamW: AdamW whose momentum coefficient follows the gradients."""

from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, descend
from optkit.transforms.adaptive_memory import PAPER
from optkit.transforms.adaptive_memory_adam import adaptive_memory_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("momentum", "adaptive momentum", "adam"),
    chain="beta from g, d, v and the learning rates > memory > 1/sqrt(v) > decay > learning rate",
)
def am_adamw(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.89,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    lam: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """AdamW with a momentum coefficient of each leaf, computed anew at each step.

    With ``d = 0``, ``pi = 1`` at the start, ``n`` the number of the update, and ``lr'`` the
    learning rate of the last update:

    1. ``v <- b2*v + (1-b2)*g**2``; ``P = (1 - b1*pi)*(sqrt(v/(1-b2**n)) + eps)``, entry by entry;
    2. ``e = d - g``; ``gap = lr'*<g, d/P + weight_decay*p>``;
       ``beta = clip([(1 + weight_decay*lr)*gap/lr - <e, (g + lam*P*d)/(P*(1 + lam*P))>
       - weight_decay*<p, e>] / <e, e/(P*(1 + lam*P))>, 0, b1)``; at the first update ``beta = b1``;
    3. ``d <- ((1 - beta)*g + (lam*P + beta)*d) / (1 + lam*P)``; ``pi <- pi*beta``;
    4. ``p <- (1 - lr*weight_decay)*p - lr*d/P``.

    ``1 - b1*pi`` is the bias correction of a coefficient that changes: with ``lam = 0`` and
    ``beta`` at its bound it is AdamW. ``beta`` is 0 where the rule has no quotient, as for a leaf
    of zero gradient that does not decay; with a learning rate of 0 the term ``gap`` falls away.

    Without matrix work: two sums a leaf beyond AdamW, 20 FLOPs a parameter, and one more reading of
    gradient, ``d`` and ``v``. Choose it over ``adamw`` to have a number less to tune. The paper
    claims better results than any fixed momentum, language models included, and that warm-up can be
    left out. In ``python -m benchmarks.claims adaptive_memory`` its training loss on digits ends
    13% below that of AdamW with the best fixed coefficient in logistic regression, and 71% below it
    in a perceptron; language models and warm-up are not in it.

    Args:
      learning_rate: a number or a schedule; part of the rule, so that its changes are seen.
      b1: largest coefficient; the paper's is ``0.9 - 0.1*lam``.
      b2: decay rate of the second moment.
      eps: added to the root.
      lam: weight of the penalty on leaving the old direction.
      weight_decay: coefficient, of decoupled decay; part of the rule.
      mask: leaves that decay; the recorded runs leave out those of rank 1 and 0.
      state_dtype: dtype of ``d`` and ``v``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter, and 8 per
      leaf in one array for all of them, whose order is that of ``jax.tree.leaves``.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(1)}, optkit.am_adamw(1.0)
      >>> state = tx.init(params)
      >>> for g in (2.0, 2.0, -2.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state, params)
      ...   print(round(float(u["w"][0]), 1))
      -1.0
      -1.0
      0.6

    Reference:
      Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization, arXiv
      2510.04988, its algorithm 3. No code of its authors is public: the recorded trajectory is a
      third party's reading of it, and so is this. A leaf that stacks layers has one ``beta``.
    """
    direction = adaptive_memory_adam(
        learning_rate,
        b1=b1,
        b2=b2,
        eps=eps,
        lam=lam,
        weight_decay=weight_decay,
        mask=mask,
        state_dtype=state_dtype,
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, mask=mask)
