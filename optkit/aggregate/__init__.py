"""Aggregates: rules by which what many clients send becomes one direction."""

from optkit.aggregate.base import Aggregate, Aggregated, Fold, Reports, as_transform
from optkit.aggregate.means import mean

__all__ = [
    "Aggregate",
    "Aggregated",
    "Fold",
    "Reports",
    "as_transform",
    "mean",
]
