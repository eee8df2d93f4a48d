"""Learning rates over a run, how they carry over to large ones, and how masks close over a run."""

from optkit.schedules.courses import (
    constant,
    cosine,
    inverse_sqrt,
    linear,
    power,
    slow_start_fast_decay,
)
from optkit.schedules.cycles import branch, wsd, wsd_s
from optkit.schedules.egg import egg_alpha
from optkit.schedules.files import load, save
from optkit.schedules.hyperp import (
    hyperp_fitted_learning_rate,
    hyperp_learning_rate,
    hyperp_residual_scale,
)
from optkit.schedules.phases import Phase, Schedule, from_dict
from optkit.schedules.progressive import frame_of, mask_decay, mask_patterns
from optkit.schedules.refinement import refine, refined

__all__ = [
    "Phase",
    "Schedule",
    "branch",
    "constant",
    "cosine",
    "egg_alpha",
    "frame_of",
    "from_dict",
    "hyperp_fitted_learning_rate",
    "hyperp_learning_rate",
    "hyperp_residual_scale",
    "inverse_sqrt",
    "linear",
    "load",
    "mask_decay",
    "mask_patterns",
    "power",
    "refine",
    "refined",
    "save",
    "slow_start_fast_decay",
    "wsd",
    "wsd_s",
]
