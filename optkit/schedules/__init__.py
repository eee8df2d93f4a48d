"""How learning rates and multipliers carry over from small runs to large ones."""

from optkit.schedules.hyperp import (
    hyperp_fitted_learning_rate,
    hyperp_learning_rate,
    hyperp_residual_scale,
)

__all__ = ["hyperp_fitted_learning_rate", "hyperp_learning_rate", "hyperp_residual_scale"]
