"""The sine term of superpositional gradient descent."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import register
from optkit.transforms.base import (
    Transformation,
    check_transformation,
    map_leaves,
    need_params,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast


class SineModulationState(NamedTuple):
    """State of ``sine_modulation``."""

    inner: PyTree  # state of the inner transformation
    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _sine(p: jax.Array) -> jax.Array:
    """``sin(pi*p)`` whose zeros are the integers exactly: float32 holds no pi."""
    near = jnp.round(p)
    odd = jnp.abs(near - 2.0 * jnp.round(near / 2.0)) > 0.5
    return jnp.where(odd, -1.0, 1.0) * jnp.sin(jnp.pi * (p - near))


@register(
    kind="wrapper",
    family="adaptive",
    paper=("Superpositional Gradient Descent", "2511.01918", 2025),
    state_bytes={"*": 0},
    tags=("superposition", "quantum"),
    chain="inner, + strength sin(pi p) g on a few entries",
)
def sine_modulation(
    inner: optax.GradientTransformation,
    strength: ScalarOrSchedule = 0.5,
    *,
    entries: int | jax.Array = 8,
) -> Transformation:
    """Adds to a direction the gradient times a sine of the weight, on a few entries of each leaf.

    1. ``u <- inner(g)``; 2. ``u <- u + strength*sin(pi*p)*g`` on the first ``entries`` entries of
    each leaf as it lies in memory; all others are ``inner``'s alone.

    At integers the sine is 0. Between them it makes steps longer or shorter, and beyond
    ``strength`` 1 it may turn an entry round.

    Args:
      inner: a direction, before the learning rate.
      strength: ``lambda`` of the paper, which reports 0.5 as best.
      entries: of each leaf; the paper's number of qubits, which we do not know.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` that keeps the dtype of the updates; a counter
      beside the inner state.

    Raises:
      ValueError: a negative strength or fewer than 0 entries, or params not given to update.
      TypeError: ``inner`` is no transformation.

    Example:
      >>> import jax.numpy as jnp, optax, optkit
      >>> tx, params = optkit.sine_modulation(optax.identity(), entries=2), jnp.array([0.5, 1, 0.5])
      >>> tx.update(jnp.ones(3), tx.init(params), params)[0].tolist()
      [1.5, 1.0, 1.0]

    Reference:
      arXiv 2511.01918, from a second-hand sheet of formulas: no code and no full text was read.
      Whether entries are counted over a leaf or over the whole model is a guess.
    """
    check_number("strength", strength, low=0.0)
    if not isinstance(entries, jax.Array):
        check_static_int("entries", entries, low=0)
    inner = check_transformation("inner", inner)

    def init_fn(params: PyTree) -> SineModulationState:
        count = jnp.zeros((), jnp.int32)
        return SineModulationState(inner.init(params), count, recorded(count, strength=strength))

    def update_fn(
        updates: PyTree,
        state: SineModulationState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, SineModulationState]:
        params = need_params(params, "sine_modulation")
        out, new = update_inner(inner, updates, state.inner, params, extra_args)
        lam = value_at(strength, state.count)

        def add(u: jax.Array, g: jax.Array, p: jax.Array) -> jax.Array:
            chosen = jnp.arange(p.size).reshape(p.shape) < entries
            wave = lam * _sine(upcast(p)) * upcast(g)
            # A product: on an Explicit mesh a choice needs a mask that lies where the leaf does.
            return (upcast(u) + chosen.astype(jnp.float32) * wave).astype(u.dtype)

        out = map_leaves(add, out, updates, params)
        record = recorded(state.count, strength=strength)
        return out, SineModulationState(new, state.count + 1, record)

    return Transformation(init_fn, update_fn)
