"""Optimizers whose statistics live in low-rank subspaces of the gradients."""

from optkit.transforms.low_rank.engine import LowRankState
from optkit.transforms.low_rank.growth import LimitNormGrowthState, limit_norm_growth
from optkit.transforms.low_rank.lazy import LazyRefresh, LazyRefreshState
from optkit.transforms.low_rank.ldadam import ScaleByLdadamState, scale_by_ldadam
from optkit.transforms.low_rank.split import split
from optkit.transforms.low_rank.subspace_norm import scale_by_subspace_norm
from optkit.transforms.low_rank.wrapper import low_rank

__all__ = [
    "LazyRefresh",
    "LazyRefreshState",
    "LimitNormGrowthState",
    "LowRankState",
    "ScaleByLdadamState",
    "limit_norm_growth",
    "low_rank",
    "scale_by_ldadam",
    "scale_by_subspace_norm",
    "split",
]
