"""AMSGrad: Adam that divides by the largest second moment it has seen."""

from collections.abc import Mapping
from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, scale_by_adam
from optkit.transforms.adam import Amsgrad
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask


@register(
    kind="recipe",
    family="adaptive",
    paper=("On the Convergence of Adam and Beyond", "1904.09237", 2018),
    state_bytes={"*": 12},
    tags=("adam", "amsgrad"),
    chain="decay > scale_by_adam(amsgrad) > learning rate",
)
def amsgrad(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    form: Amsgrad = "torch",
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "coupled",
    mask: Mask = None,
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """Adam whose second moment is replaced by its maximum over time, so that it converges.

    Adam forgets a rare large gradient and may walk away from the optimum of a convex problem
    between two of them. With ``c1 = 1-b1**n`` and ``c2 = 1-b2**n``:

    1. ``g <- g + weight_decay*p`` (``decay="coupled"``, torch's default);
    2. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    3. ``"torch"``: ``nu_max <- max(nu_max, nu)``; ``u = (mu/c1) / (sqrt(nu_max/c2) + eps)``;
       ``"optax"``: ``nu_max <- max(nu_max, nu/c2)``; ``u = (mu/c1) / (sqrt(nu_max) + eps)``;
       ``"paper"``: ``nu_max <- max(nu_max, nu)``; ``u = mu / (sqrt(nu_max) + eps)``;
    4. ``p <- p - lr*u``.

    ``"torch"`` and ``"optax"`` agree in the first update and differ from the second on: the latter
    keeps what a rough first estimate was corrected to, so that its steps are never the longer ones.
    The paper's theorem is about ``"paper"`` with
    ``eps=0``, ``lr = c/sqrt(n)``, a ``b1`` that may fall, and a projection onto a bounded set,
    which is the caller's.

    Without matrix work; as ``adamw`` and a maximum. Choose it where rare large gradients matter,
    or to compare; elsewhere ``adamw`` does as well with two thirds of the state. Our tests show the
    paper's two counterexamples: Adam ends at the worst point of the interval, AMSGrad at the best.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root; with 0 an entry that has seen no gradient rests.
      form: whose AMSGrad, see above.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``; "decoupled" is torch's AdamW.
      mask: leaves that decay.
      state_dtype: dtype of the moments, or ``{"mu": ..., "nu": ..., "nu_max": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 12 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(1)}, optkit.amsgrad(1.0, b1=0.0, b2=0.5)
      >>> state = tx.init(params)
      >>> for g in (1.0, 8.0, 1.0, 1.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state, params)
      >>> round(float(u["w"][0]), 3)  # Adam has forgotten the 8 more than that: -0.326
      -0.17

    Reference:
      Reddi, Kale and Kumar, On the Convergence of Adam and Beyond, arXiv 1904.09237;
      ``torch.optim.Adam(amsgrad=True)`` for the default form, ``optax.amsgrad`` for the other.
    """
    direction = scale_by_adam(b1, b2, eps, amsgrad=form, state_dtype=state_dtype)
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
