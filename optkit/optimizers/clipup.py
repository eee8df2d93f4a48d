"""ClipUp: unit gradients, momentum, and a speed limit."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms import Transformation, descend, global_norm
from optkit.transforms.base import map_leaves
from optkit.transforms.guards import to_unit_norm
from optkit.transforms.hyperparams import (
    Scalar,
    ScalarOrSchedule,
    check_number,
    recorded,
    value_at,
)
from optkit.transforms.momentum import MomentumState
from optkit.transforms.step import Decay, Mask
from optkit.tree import PyTree, upcast, zeros_like_params


def _limited_momentum(
    b1: ScalarOrSchedule,
    max_speed: ScalarOrSchedule,
    learning_rate: ScalarOrSchedule,
    state_dtype: Any | None,
) -> Transformation:
    """A heavy ball, ``v <- b1*v + u``, itself clipped to the norm ``max_speed/learning_rate``."""

    def record(count: jax.Array) -> dict[str, jax.Array]:
        return recorded(count, b1=b1, max_speed=max_speed)

    def init_fn(params: PyTree) -> MomentumState:
        count = jnp.zeros((), jnp.int32)
        return MomentumState(count, zeros_like_params(params, state_dtype), record(count))

    def update_fn(
        updates: PyTree, state: MomentumState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, MomentumState]:
        del params, extra_args
        keep, rate, limit = (value_at(x, state.count) for x in (b1, learning_rate, max_speed))
        ball = map_leaves(lambda u, v: keep * upcast(v) + upcast(u), updates, state.momentum)
        # At a rate of 0 nothing moves, so that nothing is too fast.
        speed = jnp.abs(rate) * global_norm(ball)
        slower = jnp.where(speed > limit, limit / jnp.where(speed > 0, speed, 1.0), 1.0)
        kept = map_leaves(lambda x, v: (slower * x).astype(v.dtype), ball, state.momentum)
        out = map_leaves(lambda u, x: (slower * x).astype(u.dtype), updates, ball)
        return out, MomentumState(state.count + 1, kept, record(state.count))

    return Transformation(init_fn, update_fn)


@register(
    kind="recipe",
    family="momentum",
    paper=("ClipUp: A Simple and Powerful Optimizer for Distribution-based ES", "2008.02387", 2020),
    state_bytes={"*": 4},
    tags=("normalized", "evolution", "pgpe"),
    chain="g/|g| over all leaves > momentum, clipped > decay > learning rate",
)
def clipup(
    learning_rate: ScalarOrSchedule = 1e-2,
    *,
    b1: ScalarOrSchedule = 0.9,
    max_speed: Scalar | None = None,
    eps: float = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    decay: Decay = "decoupled",
    mask: Mask = None,
    state_dtype: Any | None = None,
) -> Transformation:
    """Momentum of unit gradients with a limit on how far a step goes.

    1. ``u = g/(norm(g) + eps)``, the norm over all leaves together;
    2. ``v <- b1*v + u``; if ``lr*norm(v) > max_speed``, ``v <- v * max_speed/(lr*norm(v))``;
    3. ``p <- (1 - lr*weight_decay)*p - lr*v``.

    Extra work: two sums of squares. When to choose it: after ``pgpe``, whose gradient estimates
    have no scale of their own; the step is then set by the size of the parameters alone. That it
    beats Adam there is the paper's claim.

    Args:
      learning_rate: length of the push of one gradient, a number or a schedule.
      b1: decay rate of the velocity; the paper's momentum.
      max_speed: longest step over all parameters together; None for twice the learning rate.
      eps: added to the norm, in units of the gradient.
      weight_decay: coefficient; not in the paper.
      decay: kind of decay, see ``optkit.decay_weights``.
      mask: leaves that decay.
      state_dtype: dtype of ``v``.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: 4 per float32 parameter.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> params, tx = {"w": jnp.zeros(2)}, optkit.clipup(0.5, max_speed=0.25)
      >>> u, _ = tx.update({"w": jnp.array([3e9, 4e9])}, tx.init(params), params)
      >>> [round(float(x), 4) for x in u["w"]]
      [-0.15, -0.2]

    Reference:
      Toklu et al., ClipUp, arXiv 2008.02387.
    """
    check_number("learning_rate", learning_rate)
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)
    if max_speed is not None:
        check_number("max_speed", max_speed, low=0.0)

    def twice(count: jax.Array) -> jax.Array:
        return jnp.asarray(2.0 * value_at(learning_rate, count))

    constant = not callable(learning_rate)
    usual: ScalarOrSchedule = 2.0 * learning_rate if constant else twice  # type: ignore[operator]
    limit = usual if max_speed is None else max_speed
    direction = optax.chain(
        to_unit_norm(eps), _limited_momentum(b1, limit, learning_rate, state_dtype)
    )
    return descend(direction, learning_rate, weight_decay=weight_decay, decay=decay, mask=mask)
