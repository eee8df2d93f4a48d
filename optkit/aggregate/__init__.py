"""Aggregates: rules by which what many clients send becomes one direction."""

from optkit.aggregate.base import Aggregate, Aggregated, Fold, Reports, as_transform
from optkit.aggregate.buffered import fedbuff
from optkit.aggregate.centered import centered_clipping
from optkit.aggregate.checks import finite_clients
from optkit.aggregate.krum import bulyan, krum, multi_krum
from optkit.aggregate.means import majority_vote, mean
from optkit.aggregate.memory import fedstale, fedvarp
from optkit.aggregate.mifa import mifa
from optkit.aggregate.participation import fedau
from optkit.aggregate.private import dp_centered_clipping, dp_mean
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
    "dp_centered_clipping",
    "dp_mean",
    "fedau",
    "fedbuff",
    "fedstale",
    "fedvarp",
    "finite_clients",
    "geometric_median",
    "krum",
    "majority_vote",
    "mean",
    "mifa",
    "multi_krum",
    "trimmed_mean",
]
