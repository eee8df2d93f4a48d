"""Differential privacy: per-example clipping, noisy gradients, batches, and what they cost."""

from optkit.privacy.accounting import calibrate_noise, epsilon
from optkit.privacy.batches import Drawn, PoissonBatches
from optkit.privacy.clipping import ClippedSum, per_example_clip
from optkit.privacy.dp_brem import DPBrem, DPBremState, dp_brem
from optkit.privacy.dp_sgd import PrivateGradient, PrivateState, private_gradient

__all__ = [
    "ClippedSum",
    "DPBrem",
    "DPBremState",
    "Drawn",
    "PoissonBatches",
    "PrivateGradient",
    "PrivateState",
    "calibrate_noise",
    "dp_brem",
    "epsilon",
    "per_example_clip",
    "private_gradient",
]
