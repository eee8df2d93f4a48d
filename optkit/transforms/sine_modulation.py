"""The sine term of superpositional gradient descent, and the Adam that it stands beside."""

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
    unzip,
    update_inner,
)
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    debias,
    recorded,
    value_at,
)
from optkit.tree import PyTree, upcast, zeros_like_params


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


class AdamInsideState(NamedTuple):
    """State of ``adam_inside``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    mu: PyTree  # like params, first moment
    nu: PyTree  # like params, second moment
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def adam_inside(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    correct: bool,
    state_dtype: Any | None,
) -> Transformation:
    """``mu/sqrt(nu + eps)``: Adam with eps inside the root, debiased or not."""
    check_number("b1", b1, low=0.0, high=1.0, open_high=True)
    check_number("b2", b2, low=0.0, high=1.0, open_high=True)
    check_number("eps", eps, low=0.0)

    def init_fn(params: PyTree) -> AdamInsideState:
        count = jnp.zeros((), jnp.int32)
        mu, nu = (zeros_like_params(params, state_dtype) for _ in range(2))
        return AdamInsideState(count, mu, nu, recorded(count, b1=b1, b2=b2, eps=eps))

    def update_fn(
        updates: PyTree, state: AdamInsideState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, AdamInsideState]:
        del params, extra_args
        a1, a2, e = (value_at(value, state.count) for value in (b1, b2, eps))
        n = state.count + 1
        c1, c2 = (debias(a1, n), debias(a2, n)) if correct else (1.0, 1.0)

        def step(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, ...]:
            g32 = upcast(g)
            m = a1 * upcast(mu) + (1.0 - a1) * g32
            v = a2 * upcast(nu) + (1.0 - a2) * jnp.square(g32)
            below = jnp.sqrt(v / c2 + e)
            u = m / c1 / jnp.where(below > 0, below, 1.0)
            return u.astype(g.dtype), m.astype(mu.dtype), v.astype(nu.dtype)

        out, mu, nu = unzip(updates, map_leaves(step, updates, state.mu, state.nu), 3)
        return out, AdamInsideState(n, mu, nu, recorded(state.count, b1=b1, b2=b2, eps=eps))

    return Transformation(init_fn, update_fn)
