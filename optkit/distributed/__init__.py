"""Many devices: placement, averages that send less, and lossless deltas of weights."""

from optkit.distributed.compressed import CompressedMeanState, compressed_mean, onebit_mean
from optkit.distributed.deltas import (
    Delta,
    FixedDelta,
    LeafDelta,
    apply_delta,
    apply_delta_fixed,
    encode_delta,
    encode_delta_fixed,
    merge_deltas,
    payload_bytes,
)
from optkit.distributed.exploring import AutoRate, Spread
from optkit.distributed.fully_sharded import fully_sharded
from optkit.distributed.hdet import hdet, hdet_value
from optkit.distributed.hdet_steps import HdetState
from optkit.distributed.inside import inside
from optkit.distributed.onebit_adam import ScaleByOnebitAdamState, onebit_adam
from optkit.distributed.onebit_lamb import OnebitLambState, onebit_lamb
from optkit.distributed.powersgd import PowerSgdState, powersgd_mean
from optkit.distributed.replicas import on_replicas, replicas
from optkit.distributed.wire import WireBytes, wire_bytes
from optkit.distributed.workers import PerWorker, init_workers, worker_specs

__all__ = [
    "AutoRate",
    "CompressedMeanState",
    "Delta",
    "FixedDelta",
    "HdetState",
    "LeafDelta",
    "OnebitLambState",
    "PerWorker",
    "PowerSgdState",
    "ScaleByOnebitAdamState",
    "Spread",
    "WireBytes",
    "apply_delta",
    "apply_delta_fixed",
    "compressed_mean",
    "encode_delta",
    "encode_delta_fixed",
    "fully_sharded",
    "hdet",
    "hdet_value",
    "init_workers",
    "inside",
    "merge_deltas",
    "on_replicas",
    "onebit_adam",
    "onebit_lamb",
    "onebit_mean",
    "payload_bytes",
    "powersgd_mean",
    "replicas",
    "wire_bytes",
    "worker_specs",
]
