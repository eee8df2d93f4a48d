"""OASIS: a diagonal of the Hessian, and a step size that nobody has to tune."""

from collections.abc import Callable
from typing import Any

from optkit.catalogue import register
from optkit.curvature import Estimate
from optkit.transforms import Transformation, descend, scale_by_oasis
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.noise import Key
from optkit.transforms.oasis import PAPER, half_square
from optkit.transforms.step import Decay, Mask
from optkit.tree import PyTree


@register(
    kind="recipe",
    family="curvature",
    paper=PAPER,
    state_bytes={"*": 8},
    tags=("second order", "hessian", "hutchinson", "diagonal", "parameter-free"),
    chain="eta g / max(|D|, alpha) > decay > learning rate",
    example={"value_fn": half_square},
)
def oasis(
    learning_rate: ScalarOrSchedule = 1.0,
    *,
    b2: ScalarOrSchedule = 0.99,
    alpha: ScalarOrSchedule = 1e-2,
    first_step: ScalarOrSchedule = 1e-3,
    b1: ScalarOrSchedule = 0.0,
    adaptive: bool = True,
    every: int | None = None,
    curvature: Estimate | None = None,
    value_fn: Callable[[PyTree], Any] | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    key: Key = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Gradients over the Hessian's diagonal, in steps as long as the loss is smooth.

    1. ``D <- b2*D + (1-b2)*curvature(p)``, in the first update the estimate itself;
       ``Dhat = max(abs(D), alpha)``;
    2. ``eta <- min(sqrt(1+theta)*eta, norm(dp*sqrt(Dhat))/norm(dg/sqrt(Dhat))/2)`` of all leaves,
       ``dp`` the last step, ``dg`` what it changed of this batch's gradient, ``theta`` the growth
       of eta in the last update;
    3. ``p <- p - lr*(eta*g/Dhat + weight_decay*p)``.

    Pass the loss of the batch to each update, from which Hutchinson's estimate and the second
    gradient are computed, about three further gradients a step::

      updates, state = tx.update(grads, state, params, value_fn=lambda p: loss_fn(p, batch))

    Of a flax.nnx model ``graph, params, rest = nnx.split(model, nnx.Param, ...)`` are parts from
    which a function of the parameters makes it::

      optimizer.update(model, grads, value_fn=lambda p: loss(nnx.merge(graph, p, rest), batch))

    Args:
      learning_rate: multiplies the step that it finds; 1 is the paper's. With ``adaptive=False`` it
        is the step size.
      b2: decay rate of the curvature; 0.95 to 0.999.
      alpha: least divisor, 1e-3 to 1e-1; the one number that depends on the problem.
      first_step: eta in the first update, 1e-6 to 1e-3: it soon grows to what the loss allows.
      b1: decay rate of a momentum in place of the gradient; 0 for none.
      adaptive: find the step size.
      every: updates from one estimate of curvature to the next; None for 1.
      curvature: the estimate where update is given none.
      value_fn: the loss where update is given none, as of one fixed set of data.
      weight_decay: coefficient.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      key: seed or PRNG key of the estimates; None for 0.
      state_dtype: dtype of what it keeps.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 8 per float32 parameter, 4 more
      with momentum, 4 less with ``adaptive=False``.

    Raises:
      ValueError: an option out of range, or an extra argument that is missing.

    Example:
      >>> import jax, jax.numpy as jnp, optkit
      >>> loss = lambda p: p @ (jnp.array([1.0, 100.0]) * p) / 2
      >>> tx, params = optkit.oasis(value_fn=loss), jnp.array([3.0, -2.0])
      >>> state, step = tx.init(params), jax.jit(tx.update)
      >>> for _ in range(40):
      ...   u, state = step(jax.grad(loss)(params), state, params)
      ...   params = params + u
      >>> bool(loss(params) < 1e-12)
      True

    Reference:
      Jahani et al., OASIS, arXiv 2109.05198. No code of the authors is known to us.
    """
    direction = scale_by_oasis(
        b2,
        alpha=alpha,
        first_step=first_step,
        b1=b1,
        adaptive=adaptive,
        every=every,
        curvature=curvature,
        value_fn=value_fn,
        key=key,
        state_dtype=state_dtype,
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
