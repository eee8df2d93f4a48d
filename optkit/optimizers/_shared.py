"""What matrix recipes share: how a direction becomes an optimizer, and who serves the rest."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.transforms import (
    Transformation,
    descend,
    in_float32,
    scale_by_adam,
    split_matrices,
)
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.step import Decay, Mask
from optkit.tree import Dims, RuleLike

Route = tuple[str, optax.GradientTransformation]


def matrix_recipe(
    name: str,
    links: Sequence[optax.GradientTransformation],
    learning_rate: ScalarOrSchedule,
    rest: Route,
    *,
    weight_decay: ScalarOrSchedule,
    decay: Decay,
    mask: Mask,
    dims: Dims,
    roles: Sequence[RuleLike],
    after: Sequence[optax.GradientTransformation] = (),
) -> Transformation:
    """Chains the links of a matrix method, decays and steps, and routes everything else.

    ``after`` holds links that follow the learning rate.
    """
    matrices = descend(
        optax.chain(*links),
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        roles=roles,
    )
    if after:
        matrices = in_float32(optax.chain(matrices, *after))
    return split_matrices(matrices, rest[1], names=(name, rest[0]), dims=dims, roles=roles)


def adam_for_the_rest(
    other: optax.GradientTransformation | None,
    learning_rate: ScalarOrSchedule,
    *,
    eps: ScalarOrSchedule,
    state_dtype: Any | None,
    weight_decay: ScalarOrSchedule = 0.0,
    eps_mode: Any = "corrected",
    betas: tuple[ScalarOrSchedule, ScalarOrSchedule] = (0.9, 0.95),
    amsgrad: Any = None,
) -> Route:
    """Returns route name and optimizer: the user's, or AdamW."""
    if other is not None:
        return "other", other
    direction = scale_by_adam(
        *betas, eps, eps_mode=eps_mode, amsgrad=amsgrad, state_dtype=state_dtype
    )
    return "adamw", descend(direction, learning_rate, weight_decay=weight_decay)
