"""Momentum that decides at each step, from a model of the loss, how much of itself to keep."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_same_leaves, map_leaves, unzip
from optkit.transforms.guards import global_distance, global_norm
from optkit.transforms.hyperparams import ScalarOrSchedule, check_number, recorded, value_at
from optkit.tree import PyTree, upcast, zeros_like_params

PAPER = (
    "Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization",
    "2510.04988",
    2025,
)


class AdaptiveMemoryState(NamedTuple):
    """State of ``adaptive_memory``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    memory: PyTree  # like params, state_dtype (float32 for 16-bit parameters): d
    beta: jax.Array  # float32 scalar, the coefficient of the last update
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


@register(
    kind="part",
    family="accumulator",
    paper=PAPER,
    state_bytes={"*": 4},
    tags=("momentum", "adaptive momentum"),
    chain="beta from g and d; d <- (beta+lam)/(1+lam) d + (1-beta)/(1+lam) g",
)
def adaptive_memory(
    b1: ScalarOrSchedule = 0.9,
    *,
    lam: ScalarOrSchedule = 0.1,
    state_dtype: Any | None = None,
) -> Transformation:
    """Replaces updates by a momentum whose coefficient is computed anew at each step.

    The loss is modelled by the larger of two planes, of slopes ``g`` and ``d``; the step that
    minimises the model, plus a penalty of weight ``lam`` on leaving the old direction, has

    1. ``beta = clip((1 + lam)*|g|^2/|d - g|^2 - lam, 0, b1)``, norms over all leaves together, and
       0 where ``d = g``;
    2. ``d <- (beta + lam)/(1 + lam)*d + (1 - beta)/(1 + lam)*g``; ``u = d``.

    The first update has ``d = g``. ``beta`` does not depend on the learning rate nor on the scale
    of the gradients. Gradients that shrink let the momentum go; gradients of one size that are
    noise, or that agree, put ``beta`` at its bound. ``lam = 0`` leaves
    ``beta = |g|^2/|g - d|^2``, the momentum of ``optkit.momentum(beta)``.

    The paper writes the numerator of the quotient as ``(1+lam)*<g, d> - <d - g, g + lam*d>``, which
    is ``(1+lam)*|g|^2 - lam*|d - g|^2``.

    Args:
      b1: largest coefficient, in [0, 1).
      lam: weight of the penalty, at least 0: a share ``lam/(1+lam)`` of ``d`` is always kept.
      state_dtype: dtype of ``d``; float32 for 16-bit parameters if None.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates. State bytes:
      one state_dtype number per parameter. ``state.beta`` is the coefficient used last. The
      gradient and ``d`` are read three times, for the largest entries, the norms and the update; on
      a mesh two maxima and two sums are exchanged.

    Raises:
      ValueError: ``b1`` outside [0, 1) or ``lam`` below 0.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.adaptive_memory(0.9, lam=0.0)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for g in (2.0, 1.0, 1.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state)
      ...   print(round(float(state.beta), 3), round(float(u["w"][0]), 3))
      0.0 2.0
      0.9 1.9
      0.9 1.81

    Reference:
      Adaptive Memory Momentum via a Model-Based Framework for Deep Learning Optimization, arXiv
      2510.04988. No code of its authors is public; recorded trajectories are of a third party's.
    """
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("lam", lam, low=0.0)

    def init_fn(params: PyTree) -> AdaptiveMemoryState:
        count = jnp.zeros((), jnp.int32)
        memory = zeros_like_params(params, state_dtype)
        return AdaptiveMemoryState(
            count, memory, jnp.zeros((), jnp.float32), recorded(count, b1=b1, lam=lam)
        )

    def update_fn(
        updates: PyTree, state: AdaptiveMemoryState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdaptiveMemoryState]:
        del params, extra_args
        bound, weight = (value_at(value, state.count) for value in (b1, lam))
        first = state.count == 0
        check_same_leaves(updates, state.memory, "state", shapes=True)
        length, distance = global_norm(updates), global_distance(state.memory, updates)
        ratio = jnp.square(length / jnp.where(distance > 0.0, distance, 1.0))
        beta = jnp.clip((1.0 + weight) * ratio - weight, 0.0, bound)
        # At the first update d is taken for g.
        beta = jnp.where(first | (distance == 0.0), 0.0, beta).astype(jnp.float32)
        keep = jnp.where(first, 0.0, (beta + weight) / (1.0 + weight))
        fresh = jnp.where(first, 1.0, (1.0 - beta) / (1.0 + weight))

        def step(g: jax.Array, d: jax.Array) -> tuple[jax.Array, jax.Array]:
            new = keep * upcast(d) + fresh * upcast(g)
            return new.astype(g.dtype), new.astype(d.dtype)

        out, memory = unzip(updates, map_leaves(step, updates, state.memory), 2)
        new = recorded(state.count, b1=b1, lam=lam)
        return out, AdaptiveMemoryState(state.count + 1, memory, beta, new)

    return Transformation(init_fn, update_fn)
