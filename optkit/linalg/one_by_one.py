"""Factorizations of batches of matrices, one after the other where jaxlib would hang."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jaxlib.version
from jax import lax

# Up to 0.10 a batch is spread over the threads that its caller occupies one of: as many calls at a
# time as there are threads wait for each other forever, and a step with matrices of several shapes
# makes that many on a small machine.
_HANGS = tuple(int(part) for part in jaxlib.version.__version__.split(".")[:2]) < (0, 11)


def one_by_one(function: Callable[..., Any], *arrays: jax.Array) -> Any:
    """Applies a function of matrices to batches; on CPUs in a loop where batches would hang.

    A CPU that is cut into several devices keeps its batches, which a loop would gather. What
    ``jax.vmap`` makes a batch of single matrices is not seen here, and can hang:
    ``XLA_FLAGS=--xla_cpu_multi_thread_eigen=false`` or jaxlib 0.11 avoids that.

    Args:
      function: of arrays (*batch, m, n), any batch, by LAPACK.
      arrays: of one batch.

    Returns:
      What the function returns, arrays with the same batch.
    """
    batch = arrays[0].shape[:-2]
    if not _HANGS or math.prod(batch) < 2 or _has_cpu_devices():
        return function(*arrays)

    def loop(*arrays: jax.Array) -> Any:
        flat = tuple(x.reshape(-1, *x.shape[len(batch) :]) for x in arrays)
        done = lax.map(lambda each: function(*each), flat)
        return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), done)

    return lax.platform_dependent(*arrays, cpu=loop, default=function)


def _has_cpu_devices() -> bool:
    return jax.default_backend() == "cpu" and jax.device_count() > 1
