"""The TPU's own compiler, on a machine without one: programs are compiled and never run.

Needs ``pip install 'optkit[tpu]'``. Memory is what the compiler allots. Cycles are the compiler's
static estimate: XLA writes one beside its fusions and convolutions, and none beside Pallas kernels,
for which the bundles of instructions of the kernel's schedule are counted, times its grid.
"""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

_FOLDER = tempfile.TemporaryDirectory(prefix="optkit-tpu-")  # removed at exit
DUMP = Path(_FOLDER.name)
TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1"}

# The compiler reads these when it is first used. All but the last keep it from asking for a device.
for _name, _value in {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={DUMP} --xla_jf_dump_llo_text=true "
    "--xla_jf_emit_annotations=true",
}.items():
    os.environ.setdefault(_name, _value)
jax.config.update("jax_platforms", "cpu")


def compile_for(
    chip: str, function: Callable[..., Any], *shapes: Any, donate: tuple[int, ...] = ()
) -> Any:
    """Returns a function compiled for one device of a kind."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip])
    place = SingleDeviceSharding(topology.devices[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    traced = jax.jit(function, donate_argnums=donate).trace(*placed)
    return traced.lower(lowering_platforms=("tpu",)).compile()


def estimated_cycles(compiled: Any) -> int:
    """Returns the compiler's estimate for all but Pallas kernels."""
    return sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text())))


def forget_bundles() -> None:
    """Drops the schedules of what was compiled so far."""
    for path in DUMP.iterdir():
        path.unlink()


def most_bundles() -> int:
    """Returns the bundles of the longest schedule since ``forget_bundles``: that of the kernel."""
    found = [
        int(match[1])
        for path in DUMP.glob("*schedule-analysis_final_bundles.txt")
        if (match := re.search(r"total scheduled bundles:\s+(\d+)", path.read_text()))
    ]
    return max(found)
