"""AdamP."""

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, project_radial, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="adaptive",
    paper=(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        "2006.08217",
        2020,
    ),
    state_bytes={"*": 8},
    tags=("adam", "projection", "scale invariance"),
    chain="project_radial(scale_by_adam) with its decay > learning rate",
)
def adamp(
    learning_rate: ScalarOrSchedule = 1e-3,
    *,
    b1: ScalarOrSchedule = 0.9,
    b2: ScalarOrSchedule = 0.999,
    eps: ScalarOrSchedule = 1e-8,
    nesterov: bool = False,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | Mapping[str, Any] | None = None,
) -> Transformation:
    """Adam that does not make scale-invariant weights longer.

    1. ``mu <- b1*mu + (1-b1)*g``; ``nu <- b2*nu + (1-b2)*g**2``;
    2. ``u = (mu/c1) / (sqrt(nu/c2) + eps)``, ``c1 = 1-b1**n``, ``c2 = 1-b2**n``; with ``nesterov``
       ``b1*mu + (1-b1)*g`` in place of ``mu``;
    3. where the gradient of a matrix is about perpendicular to its weights, channel by channel or
       as a whole: ``u <- u - q*<q,u>`` with ``q = p/(norm(p) + eps)`` and ``r = wd_ratio``,
       elsewhere ``r = 1`` (see ``optkit.project_radial``);
    4. ``p <- (1 - lr*weight_decay*r)*p - lr*u``.

    ``delta = 0`` is AdamW, and so is what happens to vectors. Beside Adam a step takes three sums
    over each matrix and no matrix product: some ``12*fan_in*fan_out`` operations.

    When to choose it: for networks whose weights are followed by a normalization (convolutions
    before batch norm, weights before layer norm), where Adam's momentum makes weights longer and
    thereby steps smaller. The gains on 13 benchmarks are the paper's claim, which was not
    reproduced here; that norms grow more slowly is tested.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the first moment.
      b2: decay rate of the second moment.
      eps: added to the root, and lower bound of the norms of step 3.
      nesterov: look one step ahead; unlike NAdam's, both terms are divided by ``c1``.
      delta: bound of the cosine in units of that of random vectors.
      wd_ratio: what is left of the decay of scale-invariant weights.
      weight_decay: coefficient.
      mask: leaves that decay.
      dims: which axes are input and output, see ``optkit.orthogonalize``; channels are outputs.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of both moments, or ``{"mu": ..., "nu": ...}``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter.

    Raises:
      ValueError: an option out of range, or params not given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.array([[1.0], [0.0]])}, optkit.adamp(0.5)
      >>> u, _ = tx.update({"w": jnp.array([[0.01], [1.0]])}, tx.init(params), params)
      >>> (params["w"] + u["w"]).ravel().round(3).tolist()
      [1.0, -0.5]

    Reference:
      Heo et al., AdamP, arXiv 2006.08217; clovaai/AdamP. Embeddings have a token for a channel and
      all other matrices an output, which is axis 0 of both in torch.
    """
    direction = project_radial(
        scale_by_adam(
            b1, b2, eps, nesterov="one_debias" if nesterov else False, state_dtype=state_dtype
        ),
        delta=delta,
        wd_ratio=wd_ratio,
        eps=eps,
        weight_decay=weight_decay,
        mask=mask,
        dims=dims,
        roles=roles,
    )
    return descend(direction, learning_rate)
