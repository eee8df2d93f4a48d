"""Communication between workers: compressed averages of gradients, with error feedback."""

from optkit.distributed.compressed import CompressedMeanState, compressed_mean, onebit_mean
from optkit.distributed.onebit_adam import ScaleByOnebitAdamState, onebit_adam
from optkit.distributed.onebit_lamb import OnebitLambState, onebit_lamb
from optkit.distributed.powersgd import PowerSgdState, powersgd_mean
from optkit.distributed.wire import WireBytes, wire_bytes
from optkit.distributed.workers import PerWorker, init_workers, worker_specs

__all__ = [
    "CompressedMeanState",
    "OnebitLambState",
    "PerWorker",
    "PowerSgdState",
    "ScaleByOnebitAdamState",
    "WireBytes",
    "compressed_mean",
    "init_workers",
    "onebit_adam",
    "onebit_lamb",
    "onebit_mean",
    "powersgd_mean",
    "wire_bytes",
    "worker_specs",
]
