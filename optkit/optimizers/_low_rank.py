"""What the recipes of low-rank subspaces share: their last links, and who serves the rest."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes
from optkit.transforms import (
    DecayState,
    Transformation,
    descend,
    in_float32,
    scale_by_adam,
    split_matrices,
)
from optkit.transforms.base import check_gradients, map_updates, need_params
from optkit.transforms.hyperparams import (
    ScalarOrSchedule,
    check_number,
    debias,
    recorded,
    value_at,
)
from optkit.transforms.step import Decay, Mask, decay_mask, scale_by_learning_rate
from optkit.tree import Dims, PyTree, RuleLike

DecayOrAfter = Decay | Literal["after"]


def low_bytes(vectors: int, basis: bool, norms: int = 0) -> dict[str, Any]:
    """State bytes of a recipe with so many arrays of ``r * max(sides)``, and maybe a basis.

    They are those of rank 1, which the tests' small matrices have; ``norms`` are scalars.
    """
    label = f"{4 * vectors} r max(sides)" + (" + 4 r min(sides)" if basis else "")
    label += f" + {4 * norms}" if norms else ""

    def matrix(rows: int, columns: int) -> float:
        held = 4 * vectors * max(rows, columns) + (4 * min(rows, columns) if basis else 0)
        return (held if rows and columns else 0) + 4 * norms

    own = StateBytes(0, matrix, label)
    return dict.fromkeys(("matrix", "stacked", "expert", "conv"), own) | {"*": 8}


def decay_after(
    learning_rate: ScalarOrSchedule, weight_decay: ScalarOrSchedule, mask: Mask = None
) -> Transformation:
    """Decays the stepped weights: ``p <- (1 - lr*wd)*(p + u)``, behind the learning rate."""
    check_number("weight_decay", weight_decay, low=0.0)

    def init_fn(params: PyTree) -> DecayState:
        decay_mask(mask, params, ())
        count = jnp.zeros((), jnp.int32)
        return DecayState(count, recorded(count, weight_decay=weight_decay))

    def update_fn(
        updates: PyTree, state: DecayState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, DecayState]:
        del extra_args
        params = need_params(params, "weight decay")
        shrink = value_at(learning_rate, state.count) * value_at(weight_decay, state.count)

        def decay(u: jax.Array, p: jax.Array) -> jax.Array:
            return u - shrink * (p + u)

        chosen = decay_mask(mask, params, ())
        out = jax.tree.map(
            lambda u, p, on: map_updates(decay, u, p) if on else u, updates, params, chosen
        )
        new = recorded(state.count, weight_decay=weight_decay)
        return out, DecayState(state.count + 1, new)

    return Transformation(init_fn, update_fn)


def descend_or_after(
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    weight_decay: ScalarOrSchedule,
    decay: DecayOrAfter,
    mask: Mask = None,
    roles: Sequence[RuleLike] = (),
) -> Transformation:
    """``optkit.descend`` that knows a decay of the stepped weights, too."""
    if decay != "after":
        return descend(
            direction,
            learning_rate,
            weight_decay=weight_decay,
            decay=decay,
            mask=mask,
            roles=roles,
        )
    links = [direction, scale_by_learning_rate(learning_rate)]
    if not (isinstance(weight_decay, int | float) and weight_decay == 0):
        links.append(decay_after(learning_rate, weight_decay, mask))
    tx = in_float32(optax.chain(*links))

    def update_fn(
        updates: PyTree, state: PyTree, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        check_gradients(updates, params)
        return tx.update(updates, state, params, **extra_args)

    return Transformation(tx.init, update_fn)


def low_rank_recipe(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    rest: optax.GradientTransformation,
    other: optax.GradientTransformation | None,
    *,
    weight_decay: ScalarOrSchedule,
    decay: DecayOrAfter,
    mask: Mask,
    dims: Dims,
    roles: Sequence[RuleLike],
    rest_name: str = "adamw",
) -> Transformation:
    """Steps the matrices along a direction, and all other leaves along ``rest``, or ``other``."""
    matrices = descend_or_after(
        direction,
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        roles=roles,
    )
    if other is None:
        other = descend_or_after(rest, learning_rate, weight_decay=weight_decay, decay=decay)
    else:
        rest_name = "other"
    return split_matrices(matrices, other, names=(name, rest_name), dims=dims, roles=roles)


class CorrectionState(NamedTuple):
    """State of Adam's correction behind everything that depends on the length of updates."""

    # Optax's name for it; that tuples have a method `count` does not matter here.
    count: jax.Array  # type: ignore[assignment]  # int32 scalar, finished updates


def corrected(b1: ScalarOrSchedule, b2: ScalarOrSchedule) -> Transformation:
    """Multiplies by ``sqrt(1-b2**n)/(1-b1**n)``, n the number of the update."""

    def init_fn(params: PyTree) -> CorrectionState:
        del params
        return CorrectionState(jnp.zeros((), jnp.int32))

    def update_fn(
        updates: PyTree, state: CorrectionState, params: PyTree | None = None, **extra_args: Any
    ) -> tuple[PyTree, CorrectionState]:
        del params, extra_args
        n = state.count + 1
        first, second = (debias(value_at(b, state.count), n) for b in (b1, b2))
        factor = jnp.sqrt(second) / first
        return map_updates(lambda u: u * factor, updates), CorrectionState(n)

    return Transformation(init_fn, update_fn)


def adam_of(
    b1: ScalarOrSchedule,
    b2: ScalarOrSchedule,
    eps: ScalarOrSchedule,
    eps_mode: Any,
    state_dtype: Any,
) -> Transformation:
    """Adam's direction in one of its two dialects."""
    return scale_by_adam(b1, b2, eps, eps_mode=eps_mode, state_dtype=state_dtype)
