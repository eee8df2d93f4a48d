"""Communication between workers: compressed averages of gradients, with error feedback."""

from optkit.distributed.powersgd import PowerSgdState, powersgd_mean
from optkit.distributed.wire import WireBytes, wire_bytes
from optkit.distributed.workers import PerWorker, init_workers, worker_specs

__all__ = [
    "PerWorker",
    "PowerSgdState",
    "WireBytes",
    "init_workers",
    "powersgd_mean",
    "wire_bytes",
    "worker_specs",
]
