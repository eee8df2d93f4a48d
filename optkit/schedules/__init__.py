"""How learning rates carry over from small runs to large ones, and how masks close over a run."""

from optkit.schedules.egg import egg_alpha
from optkit.schedules.hyperp import (
    hyperp_fitted_learning_rate,
    hyperp_learning_rate,
    hyperp_residual_scale,
)
from optkit.schedules.progressive import frame_of, mask_decay, mask_patterns

__all__ = [
    "egg_alpha",
    "frame_of",
    "hyperp_fitted_learning_rate",
    "hyperp_learning_rate",
    "hyperp_residual_scale",
    "mask_decay",
    "mask_patterns",
]
