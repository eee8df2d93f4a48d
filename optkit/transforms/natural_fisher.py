"""The natural gradient of the last few gradients, by Woodbury's identity."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from optkit.catalogue import register
from optkit.transforms.base import Transformation, check_gradients, map_leaves, unzip
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    check_static_int,
    recorded,
    value_at,
)
from optkit.tree import PyTree, accumulator_dtype, upcast
from optkit.tree.sharding import place_like, whole_along

# Smallest damping in units of the largest square of a gradient: float32 resolves no less.
_LEAST = 1e-6


class ScaleByNaturalFisherState(NamedTuple):
    """State of ``scale_by_natural_fisher``."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates
    history: tuple[PyTree, ...]  # the last gradients, each like params, float32 for 16 bits
    hyperparams: dict[str, jax.Array]  # float32 scalars, scheduled values of the last update


def _natural(held: list[jax.Array], place: jax.Array, damping: Any) -> jax.Array:
    """``(damping*I + sum of h h^T)^-1 g`` of one leaf, its last two axes one vector.

    For g is one of the h, it is ``H (damping*I + H^T H)^-1 e``: nothing cancels.
    """
    first = held[0]
    if first.size == 0:
        return first
    axes = (-2, -1) if first.ndim >= 2 else tuple(range(first.ndim))
    batch = first.shape[:-2]
    for axis in axes:
        held = [whole_along(h, axis) for h in held]
    vectors = jnp.stack(held, axis=len(batch))
    over = tuple(range(len(batch), vectors.ndim))
    unit = jnp.maximum(jnp.max(jnp.abs(vectors), axis=over, keepdims=True), 1.0)
    flat = (vectors / unit).reshape(*batch, len(held), math.prod(first.shape[len(batch) :]))
    unit = unit.reshape(*batch, 1, 1)
    least = jnp.where(unit > 1.0, _LEAST, 0.0)
    size = jnp.maximum(damping / unit / unit, least)
    gram = jnp.matmul(flat, flat.mT, precision="highest")
    places = jnp.arange(len(held))
    eye = (places[:, None] == places[None, :]).reshape((1,) * len(batch) + (len(held),) * 2)
    now = (places == place).astype(flat.dtype).reshape((1,) * len(batch) + (len(held), 1))
    now = now + jnp.zeros_like(gram[..., :1])  # lying like it
    solve: Callable[[jax.Array, jax.Array], jax.Array] = jnp.linalg.solve
    for _ in batch:
        solve = jax.vmap(solve)
    solved = solve(gram + size * eye, now)
    out = jnp.matmul(flat.mT, solved, precision="highest") / unit
    return out[..., 0].reshape(first.shape)


@register(
    kind="part",
    family="memory",
    paper=(
        "Natural GaLore: Accelerating GaLore for memory-efficient LLM Training",
        "2410.16029",
        2024,
    ),
    state_bytes={"*": 80},
    tags=("natural gradient", "second order"),
    chain="(damping I + sum of the last g g^T)^-1 g",
)
def scale_by_natural_fisher(
    history: int | None = None,
    *,
    damping: ScalarOrSchedule = 1e-3,
) -> Transformation:
    """Multiplies by the inverse of damping plus the outer products of the last gradients.

    With H the last ``history`` gradients of a matrix as columns, this one among them:

    1. ``z = (damping*I + H^T H)^-1 e``, e the unit vector of g's column;
    2. ``u = H z``, which is ``(damping*I + H H^T)^-1 g``.

    Of leaves of rank above 2 each matrix of the last two axes is on its own.

    Args:
      history: how many gradients; None for 20. Before there are so many, those there are.
      damping: what is added to their outer products. Where entries of the gradients exceed 1, it
        counts as 1e-6 of their largest square at least, all that float32 resolves.

    Returns:
      An ``optax.GradientTransformationExtraArgs``; keeps dtypes. State bytes: 4 per parameter for
      each gradient kept.

    Raises:
      ValueError: an option out of range.

    Example:
      >>> import jax.numpy as jnp, optkit
      >>> tx = optkit.scale_by_natural_fisher(1, damping=1.0)  # g / (1 + |g|^2)
      >>> g = {"w": jnp.array([1.0, 2.0])}
      >>> tx.update(g, tx.init(g))[0]["w"].round(4).tolist()
      [0.16..., 0.33...]

    Reference:
      Das et al., Natural GaLore, arXiv 2410.16029, with Woodbury's identity in the form in which
      nothing cancels.
    """
    history = 20 if history is None else history
    check_static_int("history", history)
    check_number("damping", damping, low=1e-30)

    def init_fn(params: PyTree) -> ScaleByNaturalFisherState:
        count = jnp.zeros((), jnp.int32)
        held = tuple(
            jax.tree.map(lambda p: jnp.zeros_like(p, dtype=accumulator_dtype(p)), params)
            for _ in range(history)
        )
        return ScaleByNaturalFisherState(count, held, recorded(count, damping=damping))

    def update_fn(
        updates: PyTree,
        state: ScaleByNaturalFisherState,
        params: PyTree | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, ScaleByNaturalFisherState]:
        del extra_args
        check_gradients(updates, params)
        size, place = value_at(damping, state.count), state.count % history

        def leaf(g: jax.Array, *old: jax.Array) -> tuple[jax.Array, ...]:
            wide = upcast(g)
            held = [jnp.where(place == i, wide, upcast(h)) for i, h in enumerate(old)]
            out = place_like(_natural(held, place, size), wide).astype(g.dtype)
            return out, *(h.astype(o.dtype) for h, o in zip(held, old, strict=True))

        out, *held = unzip(updates, map_leaves(leaf, updates, *state.history), 1 + history)
        new = recorded(state.count, damping=damping)
        return out, ScaleByNaturalFisherState(state.count + 1, tuple(held), new)

    return Transformation(init_fn, update_fn)
