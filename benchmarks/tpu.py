"""The TPU's own compiler, on a machine without one: programs are compiled and never run.

Needs ``pip install 'optkit[tpu]'``. Memory is what the compiler allots. Cycles are the compiler's
static estimate: XLA writes one beside its fusions and convolutions, and none beside Pallas kernels,
for which the bundles of instructions of the kernel's schedule are counted, times its grid.
"""

from collections.abc import Callable
from typing import Any

import jax

from optkit import aot

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}

aot.write_schedules()  # before the compiler is first used
jax.config.update("jax_platforms", "cpu")
forget_bundles = aot.forget_schedules


def compile_for(
    chip: str, function: Callable[..., Any], *shapes: Any, donate: tuple[int, ...] = ()
) -> Any:
    """Returns a function compiled for one device of a kind."""
    return aot.compile_for(TOPOLOGIES[chip], function, *shapes, donate=donate)


def estimated_cycles(compiled: Any) -> int:
    """Returns the compiler's estimate for all but Pallas kernels."""
    return aot.estimated_cycles(aot.read_hlo(compiled.as_text()))


def most_bundles() -> int:
    """Returns the bundles of the longest schedule since ``forget_bundles``: that of the kernel."""
    return max(aot.scheduled_bundles().values())
