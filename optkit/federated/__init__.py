"""Federated training: servers, whole rounds of clients, and what asynchrony asks for."""

from optkit.aggregate.staleness import (
    constant_staleness,
    exponential_staleness,
    polynomial_staleness,
    threshold_staleness,
)
from optkit.federated.arrivals import (
    AdaptiveCompensation,
    MeanSquareState,
    WeightedMomentumState,
    adaptive_dc_asgd,
    weighted_momentum,
)
from optkit.federated.asynchrony import (
    ParamsHistory,
    convert_stale,
    dc_asgd,
    keep_params,
    push_params,
    stale_params,
)
from optkit.federated.fedamd import FedAmd, FedAmdState, fedamd
from optkit.federated.fedlex import fold_guidance, scale_by_tree
from optkit.federated.rounds import RoundInfo, federated_round
from optkit.federated.server import Server, ServerState, server_step
from optkit.federated.timing import AsyncSchedule, async_schedule, async_weights

__all__ = [
    "AdaptiveCompensation",
    "AsyncSchedule",
    "FedAmd",
    "FedAmdState",
    "MeanSquareState",
    "ParamsHistory",
    "RoundInfo",
    "Server",
    "ServerState",
    "WeightedMomentumState",
    "adaptive_dc_asgd",
    "async_schedule",
    "async_weights",
    "constant_staleness",
    "convert_stale",
    "dc_asgd",
    "exponential_staleness",
    "fedamd",
    "federated_round",
    "fold_guidance",
    "keep_params",
    "polynomial_staleness",
    "push_params",
    "scale_by_tree",
    "server_step",
    "stale_params",
    "threshold_staleness",
    "weighted_momentum",
]
