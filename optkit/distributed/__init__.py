"""Communication between workers: compressed averages of gradients, with error feedback."""

from optkit.distributed.compressed import CompressedMeanState, compressed_mean, onebit_mean
from optkit.distributed.onebit_adam import ScaleByOnebitAdamState, onebit_adam
from optkit.distributed.powersgd import PowerSgdState, powersgd_mean
from optkit.distributed.wire import WireBytes, wire_bytes
from optkit.distributed.workers import PerWorker, init_workers, worker_specs

__all__ = [
    "CompressedMeanState",
    "PerWorker",
    "PowerSgdState",
    "ScaleByOnebitAdamState",
    "WireBytes",
    "compressed_mean",
    "init_workers",
    "onebit_adam",
    "onebit_mean",
    "powersgd_mean",
    "wire_bytes",
    "worker_specs",
]
