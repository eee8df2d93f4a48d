"""Hyperparameters of a small run carried over to a large one: tables of factors, and a check."""

from optkit.transfer.activations import linen_activations, nnx_activations
from optkit.transfer.coordinates import Coordinates, Trial, coordinate_check
from optkit.transfer.laws import Laws, LeafLaw
from optkit.transfer.regimes import (
    data_limited_decay,
    hyperp,
    lora_plus,
    scale_vector_decay,
    scale_vector_labels,
)
from optkit.transfer.scaling import scale_leaves
from optkit.transfer.width import (
    depth_mup,
    match_init,
    mup,
    top_singular_ratios,
    weight_decay_transfer,
)

__all__ = [
    "Coordinates",
    "Laws",
    "LeafLaw",
    "Trial",
    "coordinate_check",
    "data_limited_decay",
    "depth_mup",
    "hyperp",
    "linen_activations",
    "lora_plus",
    "match_init",
    "mup",
    "nnx_activations",
    "scale_leaves",
    "scale_vector_decay",
    "scale_vector_labels",
    "top_singular_ratios",
    "weight_decay_transfer",
]
