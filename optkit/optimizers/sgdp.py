"""SGDP."""

from collections.abc import Sequence
from typing import Any

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, momentum, project_radial
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Mask
from optkit.tree import Dims, RuleLike


@register(
    kind="recipe",
    family="momentum",
    paper=(
        "AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-invariant Weights",
        "2006.08217",
        2020,
    ),
    state_bytes={"*": 4},
    tags=("sgd", "projection", "scale invariance"),
    chain="project_radial(momentum) with its decay > learning rate",
)
def sgdp(
    learning_rate: ScalarOrSchedule = 0.1,
    *,
    b1: ScalarOrSchedule = 0.0,
    dampening: ScalarOrSchedule = 0.0,
    nesterov: bool = False,
    project_buffer: bool = False,
    delta: ScalarOrSchedule = 0.1,
    wd_ratio: ScalarOrSchedule = 0.1,
    eps: ScalarOrSchedule = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Mask = None,
    dims: Dims = None,
    roles: Sequence[RuleLike] = (),
    state_dtype: Any | None = None,
) -> Transformation:
    """SGD with momentum that does not make scale-invariant weights longer.

    1. ``m <- b1*m + (1-dampening)*g``; ``u = m``, or with ``nesterov`` ``u = g + b1*m``;
    2. where the gradient of a matrix is about perpendicular to its weights, channel by channel or
       as a whole: ``u <- u - q*<q,u>`` with ``q = p/(norm(p) + eps)`` and ``r = wd_ratio``,
       elsewhere ``r = 1`` (see ``optkit.project_radial``); with ``project_buffer`` ``m <- u``;
    3. ``p <- (1 - lr*weight_decay*r/(1-b1))*p - lr*u``.

    Beside SGD a step takes three sums over each matrix and no matrix product: some
    ``12*fan_in*fan_out`` operations.

    When to choose it: with momentum (``b1=0.9`` is usual; the default of 0 is the reference's) on
    networks whose weights are followed by a normalization. The gains on benchmarks are the paper's
    claim, which was not reproduced here.

    Args:
      learning_rate: a number or a schedule.
      b1: decay rate of the heavy ball.
      dampening: share of the gradient that the momentum leaves out, as torch's SGD has it.
      nesterov: look one step ahead.
      project_buffer: keep the projected direction as momentum. The reference does so without
        ``nesterov``, since it projects in place; the paper keeps the momentum whole.
      delta: bound of the cosine in units of that of random vectors.
      wd_ratio: what is left of the decay of scale-invariant weights.
      eps: lower bound of the norms of step 2.
      weight_decay: coefficient; it is divided by ``1-b1`` as the steps are.
      mask: leaves that decay.
      dims: which axes are input and output, see ``optkit.orthogonalize``; channels are outputs.
      roles: your own ``(pattern, role)`` rules.
      state_dtype: dtype of ``m``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range, both ``nesterov`` and ``project_buffer``, or params not
        given to update.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.array([[1.0], [0.0]])}, optkit.sgdp(0.5)
      >>> u, _ = tx.update({"w": jnp.array([[0.01], [1.0]])}, tx.init(params), params)
      >>> (params["w"] + u["w"]).ravel().round(3).tolist()
      [1.0, -0.5]

    Reference:
      Heo et al., AdamP, arXiv 2006.08217; clovaai/AdamP, whose golden needs ``project_buffer``.
      Embeddings have a token for a channel and all other matrices an output, which is axis 0 of
      both in torch.
    """
    if nesterov and project_buffer:
        raise ValueError(
            "nesterov=True and project_buffer=True exclude each other: what is projected is then "
            "the look-ahead, which is not the momentum; leave one of them out"
        )
    direction = project_radial(
        momentum(
            b1, kind="heavy_ball", dampening=dampening, nesterov=nesterov, state_dtype=state_dtype
        ),
        delta=delta,
        wd_ratio=wd_ratio,
        eps=eps,
        weight_decay=weight_decay,
        b1=b1,
        carry="momentum" if project_buffer else None,
        mask=mask,
        dims=dims,
        roles=roles,
    )
    return descend(direction, learning_rate)
