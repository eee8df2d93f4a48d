"""Gradient accumulation with a dtype of its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    dtypes_of_updates,
    keep_dtypes,
    map_leaves,
)
from optkit.transforms.hyperparams import check_static_int
from optkit.tree import PyTree, upcast, zeros_like_params


class AccumulateState(NamedTuple):
    """State of ``accumulate_gradients``."""

    inner: PyTree  # state of the inner transformation
    gathered: PyTree  # like params, sum of the gradients so far, dtype of the accumulator
    micro_step: jax.Array  # int32 scalar, gradients gathered since the last step


@register(
    kind="wrapper",
    family="accumulation",
    state_bytes={"*": 4},
    tags=("microbatch",),
    chain="inner on the mean of k gradients",
    example={"every": 2},
)
def accumulate_gradients(
    inner: optax.GradientTransformation,
    every: int,
    *,
    dtype: Any | None = None,
    average: bool = True,
) -> Transformation:
    """Gathers ``every`` gradients and lets the inner optimizer step on their mean.

    1. ``a <- a + g`` in ``dtype``;
    2. at each ``every``-th call ``u <- inner(a/every)`` and ``a <- 0``; at the others ``u = 0`` and
       the inner state stays.

    Args:
      inner: a whole optimizer; sees the gathered gradient in float32 or better and counts its own
        steps, so that schedules advance once per step.
      every: gradients per step; 1 gives ``inner`` itself and allocates nothing.
      dtype: dtype of the accumulator; float32 for 16-bit parameters if None. A 16-bit one halves
        the memory and loses what is below its last bit.
      average: divide by ``every``; False steps on the sum.

    Returns:
      An ``optax.GradientTransformationExtraArgs``. State bytes: one accumulator per parameter, made
      from the parameter, so sharded like it. Extra arguments reach the inner update of the last
      gradient only.

    Raises:
      ValueError: ``every`` below 1.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx = optkit.accumulate_gradients(optax.sgd(1.0), 2)
      >>> state = tx.init({"w": jnp.zeros(1)})
      >>> for g in (1.0, 3.0):
      ...   u, state = tx.update({"w": jnp.array([g])}, state)
      ...   print(float(u["w"][0]))
      0.0
      -2.0
    """
    check_static_int("every", every)
    inner = check_transformation("inner", inner)
    if every == 1:
        return inner
    scale = 1.0 / every if average else 1.0

    def init_fn(params: PyTree) -> AccumulateState:
        zeros = zeros_like_params(params, dtype)
        return AccumulateState(inner.init(params), zeros, jnp.zeros((), jnp.int32))

    def update_fn(
        updates: PyTree, state: AccumulateState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AccumulateState]:
        gathered = map_leaves(
            lambda g, a: (upcast(a) + upcast(g)).astype(a.dtype), updates, state.gathered
        )

        dtypes = dtypes_of_updates(inner, updates, state.inner, params, extra_args)

        def step(held: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
            total, inner_state = held
            mean = jax.tree.map(lambda a: upcast(a) * scale, total)
            out, new = inner.update(mean, inner_state, params, **extra_args)
            out = jax.tree.map(lambda u, dtype: u.astype(dtype), out, dtypes)
            return out, jax.tree.map(jnp.zeros_like, total), keep_dtypes(new, inner_state)

        def wait(held: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree, PyTree]:
            total, inner_state = held
            return jax.tree.map(jnp.zeros_like, updates, dtypes), total, inner_state

        due = state.micro_step == every - 1
        out, gathered, inner_state = jax.lax.cond(due, step, wait, (gathered, state.inner))
        micro = jnp.where(due, 0, state.micro_step + 1)
        return out, AccumulateState(inner_state, gathered, micro)

    return Transformation(init_fn, update_fn)
