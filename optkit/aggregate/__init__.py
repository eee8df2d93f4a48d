"""Aggregates: rules by which what many clients send becomes one direction."""

from optkit.aggregate.base import Aggregate, Aggregated, Fold, Reports, as_transform
from optkit.aggregate.centered import centered_clipping
from optkit.aggregate.krum import bulyan, krum, multi_krum
from optkit.aggregate.means import mean
from optkit.aggregate.robust import (
    coordinate_median,
    geometric_median,
    trimmed_mean,
)

__all__ = [
    "Aggregate",
    "Aggregated",
    "Fold",
    "Reports",
    "as_transform",
    "bulyan",
    "centered_clipping",
    "coordinate_median",
    "geometric_median",
    "krum",
    "mean",
    "multi_krum",
    "trimmed_mean",
]
