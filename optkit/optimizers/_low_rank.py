"""What the recipes of low-rank subspaces share: their last links, and who serves the rest."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from optkit.catalogue import StateBytes
from optkit.transforms import Transformation, descend, split_matrices
from optkit.transforms.base import map_updates
from optkit.transforms.hyperparams import ScalarOrSchedule, debias, value_at
from optkit.transforms.low_rank.projection import BasisKind
from optkit.transforms.step import Mask, StepDecay
from optkit.tree import Dims, PyTree, RuleLike


def default_rank(rows: int, columns: int) -> int:
    """The rank of a matrix where a recipe of subspaces is given none: a quarter of a side."""
    short = min(rows, columns)
    return min(max(round(0.25 * short), 1), short)


def low_bytes(vectors: int, basis: bool, norms: int = 0, rank: int | None = None) -> dict[str, Any]:
    """State bytes of a recipe with so many arrays of ``r * max(sides)``, and maybe a basis.

    r is ``rank``, or that of ``default_rank``; ``norms`` are scalars.
    """
    label = f"{4 * vectors} r max(sides)" + (" + 4 r min(sides)" if basis else "")
    label += f" + {4 * norms}" if norms else ""

    def matrix(rows: int, columns: int) -> float:
        r = default_rank(rows, columns) if rank is None else min(rank, rows, columns)
        held = vectors * max(rows, columns) + (min(rows, columns) if basis else 0)
        return 4 * r * held + 4 * norms

    own = StateBytes(0, matrix, label)
    return dict.fromkeys(("matrix", "stacked", "expert", "conv"), own) | {"*": 8}


def check_online(
    basis: BasisKind,
    learning_rate: ScalarOrSchedule,
    basis_optimizer: optax.GradientTransformation | None,
) -> None:
    """Raises for online bases that would not follow a scheduled learning rate, as they should."""
    if basis == "online" and basis_optimizer is None and callable(learning_rate):
        raise ValueError(
            "basis='online' moves bases at learning_rate/(its first value)/refresh_every, and of a "
            "schedule that value is not known; give basis_optimizer=optkit.adamw(lambda n: "
            "schedule(n + 1)/peak/refresh_every, weight_decay=0.01)"
        )


def low_rank_recipe(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    rest: optax.GradientTransformation,
    other: optax.GradientTransformation | None,
    *,
    weight_decay: ScalarOrSchedule,
    decay: StepDecay,
    mask: Mask,
    dims: Dims,
    roles: Sequence[RuleLike],
    rest_name: str = "adamw",
) -> Transformation:
    """Steps the matrices along a direction, and all other leaves along ``rest``, or ``other``."""
    matrices = descend(
        direction,
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        roles=roles,
    )
    if other is None:
        other = descend(rest, learning_rate, weight_decay=weight_decay, decay=decay)
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
