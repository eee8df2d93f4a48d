"""What MARS-AdamW and MARS-Lion share: the reduced gradient, and who serves which leaf."""

from collections.abc import Sequence
from typing import Any

import optax

from optkit.optimizers._shared import adam_for_the_rest
from optkit.transforms import (
    Transformation,
    clip_leaf_norm,
    descend,
    variance_reduce,
)
from optkit.transforms.base import check_transformation
from optkit.transforms.hyperparams import ScalarOrSchedule
from optkit.transforms.split import route_matrices
from optkit.transforms.step import Decay, Mask
from optkit.tree import MATRIX_ROLES, Role, RuleLike, Selector

PAPER = (
    "MARS: Unleashing the Power of Variance Reduction for Training Large Models",
    "2411.10438",
    2024,
)
# The reference takes all leaves of rank 2, tables and heads included.
MATRICES = tuple(str(role) for role in (*MATRIX_ROLES, Role.EMBEDDING, Role.HEAD))


def mars_recipe(
    name: str,
    direction: optax.GradientTransformation,
    learning_rate: ScalarOrSchedule,
    *,
    b1: ScalarOrSchedule,
    gamma: ScalarOrSchedule,
    clip: float | None,
    exact: bool,
    amsgrad: bool,
    weight_decay: ScalarOrSchedule,
    decay: Decay,
    mask: Mask,
    optimize_1d: bool,
    matrices: Selector,
    adam_learning_rate: ScalarOrSchedule | None,
    adam_betas: tuple[ScalarOrSchedule, ScalarOrSchedule],
    adam_eps: ScalarOrSchedule,
    adam_weight_decay: ScalarOrSchedule,
    other: optax.GradientTransformation | None,
    roles: Sequence[RuleLike],
    state_dtype: Any | None,
) -> Transformation:
    """Gives a direction the gradient of MARS, and what is no matrix to AdamW."""
    parts = [variance_reduce(gamma, b1, exact=exact, state_dtype=state_dtype)]
    if clip is not None:
        parts.append(clip_leaf_norm(clip, per="layer", roles=roles))
    mars = descend(
        optax.chain(*parts, direction),
        learning_rate,
        weight_decay=weight_decay,
        decay=decay,
        mask=mask,
        roles=roles,
    )
    # Built either way, so that a wrong value of any option is answered.
    rest, adamw = adam_for_the_rest(
        other,
        learning_rate if adam_learning_rate is None else adam_learning_rate,
        betas=adam_betas,
        eps=adam_eps,
        amsgrad="torch" if amsgrad else None,
        state_dtype=state_dtype,
        weight_decay=adam_weight_decay,
    )
    if optimize_1d and (other is not None or adam_learning_rate is not None):
        raise ValueError(
            f"optimize_1d=True trains all leaves by {name} at learning_rate; leave out other and "
            "adam_learning_rate, or give optimize_1d=False"
        )
    if optimize_1d:
        return mars
    return route_matrices(
        {name: mars, rest: check_transformation("other", adamw)},
        [(matrices, name), ("**", rest)],
        matrices=(),
        dims=None,
        roles=roles,
    )
