"""What matrix recipes share: the second optimizer of everything that is no hidden matrix."""

from typing import Any

import optax

from optkit.transforms import Transformation, descend, scale_by_adam
from optkit.transforms.hyperparams import ScalarOrSchedule


def adam_for_the_rest(
    other: optax.GradientTransformation | None,
    learning_rate: ScalarOrSchedule,
    *,
    eps: float,
    state_dtype: Any | None,
    weight_decay: ScalarOrSchedule = 0.0,
    eps_mode: Any = "corrected",
) -> tuple[str, optax.GradientTransformation]:
    """Returns route name and optimizer: the user's, or AdamW with betas (0.9, 0.95)."""
    if other is not None:
        return "other", other
    direction = scale_by_adam(0.9, 0.95, eps, eps_mode=eps_mode, state_dtype=state_dtype)
    tx: Transformation = descend(direction, learning_rate, weight_decay=weight_decay)
    return "adamw", tx
