"""A Muon step on TPU pods, by their compiler: ``python -m benchmarks.tpu_muon`` (no TPU).

Needs ``pip install 'optkit[tpu]'``. The model is ``optkit.aot``'s gpt2-medium: 24 layers, width
1024, feed-forward 4096, vocabulary 50304, float32 parameters; query, key, value and output apart,
each leaf cut along the model's width (and on the mesh of two axes along its other side). The step
is momentum, Nesterov, the iteration in bfloat16, AdamW on embeddings and vectors, and the update of
the parameters, all buffers donated. MiB is what a chip sends in a step by ring formulas. Cycles are
the compiler's static estimate of computation and copies, without exchanges; nothing was run.

``--kernels`` takes ``implementation="pallas"`` instead, whose cycles are counted as in
``benchmarks.tpu_newton_schulz`` and added. ``--naive`` takes optax.contrib.muon. ``--only NAME``
picks rows, ``--save`` adds the rows to the table beside this file.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, AxisType

import optkit
from optkit import aot
from optkit.tree import leaves_with_paths
from optkit.tree.costs import Batch, merge_widths
from optkit.tree.sharding import SLOW_AXES

STORED = Path(__file__).parent / "results" / "tpu_muon.json"
MIB = 2**20


class Case(NamedTuple):
    """A topology, how the model lies on it, and what it may cost.

    Attributes:
      topology: name of the topology.
      axes: sizes of the mesh axes.
      layout: see ``optkit.aot.place_model``.
      stacked: 24 layers in one leaf, or one leaf a layer.
      explicit: Explicit mesh axes.
      mib: most MiB sent by a chip.
      mcycles: most million cycles.
    """

    topology: str
    axes: dict[str, int]
    layout: str = "fsdp"
    stacked: bool = True
    explicit: bool = False
    mib: float | None = None
    mcycles: float | None = None


CASES = {
    "16 chips": Case("v5e:4x4", {"fsdp": 16}, mib=68, mcycles=5.0),
    "16 chips, a leaf a layer": Case("v5e:4x4", {"fsdp": 16}, stacked=False, mib=68, mcycles=5.0),
    "16 chips, Explicit": Case("v5e:4x4", {"fsdp": 16}, explicit=True, mib=68, mcycles=5.0),
    "16 chips, two axes": Case("v5e:4x4", {"fsdp": 4, "tensor": 4}, layout="fsdp+tensor", mib=108),
    "256 chips": Case("v5e:16x16", {"fsdp": 256}, mib=20, mcycles=1.3),
    "2 slices of 16": Case("2xv5e:4x4", {"slice": 2, "fsdp": 16}, mib=68),
}


def parameters(case: Case) -> Any:
    """Shapes of the model, placed."""
    kind = AxisType.Explicit if case.explicit else AxisType.Auto
    sizes, names = tuple(case.axes.values()), tuple(case.axes)
    mesh = AbstractMesh(sizes, names, axis_types=(kind,) * len(names))
    return aot.place_model(aot.model_shapes("gpt2-medium", stacked=case.stacked), mesh, case.layout)


def naive(params: Any) -> optax.GradientTransformation:
    """optax.contrib.muon on the same matrices."""
    dims = optax.contrib.MuonDimensionNumbers(-2, -1)
    found = [dims if path.endswith("kernel") else None for path, _ in leaves_with_paths(params)]
    tree = jax.tree.unflatten(jax.tree.structure(params), found)
    return optax.contrib.muon(0.02, muon_weight_dimension_numbers=tree)


def kernel_cycles(devices: int) -> int:
    """Cycles of the kernels for the share of one device, each compiled by itself."""
    from benchmarks import tpu, tpu_newton_schulz  # they have the compiler write its schedules
    from optkit.kernels.arg_specs import ArgSpec

    batches = [Batch(96, 1024, 1024, 2), Batch(48, 1024, 4096, 2)]
    rows = optkit.linalg.get_coefficients(tpu_newton_schulz.COEFFICIENTS, tpu_newton_schulz.STEPS)

    def flops(m: int, n: int) -> int:
        return optkit.linalg.factor_flops(m, n, "auto", rows, jnp.bfloat16)

    total = 0
    for members in merge_widths(batches, devices, flops):
        own = -(-sum(batches[i].count for i in members) // devices)
        m, n = batches[members[0]].m, batches[members[0]].n
        spec = ArgSpec("share of a device", (own, m, n))
        factor = optkit.linalg.newton_schulz if m == n else optkit.linalg.gram_newton_schulz
        run = functools.partial(factor, coefficients="jordan", steps=5, implementation="pallas")
        tpu.forget_bundles()
        compiled = tpu.compile_for("v5e", run, spec.abstract())
        total += tpu_newton_schulz.kernel_cycles(compiled, run, spec.abstract())[0]
    return total


def row(name: str, case: Case, method: str) -> dict[str, Any]:
    """Compiles one step and returns what it costs."""
    params = parameters(case)
    kernels = method == "optkit.muon, kernels"
    if method == "optax.contrib.muon":
        tx = naive(params)
    else:
        implementation = "pallas" if kernels else "xla"
        tx = optkit.muon(0.02, dtype=jnp.bfloat16, implementation=implementation)
    # Slices repeat each other's work.
    sharing = math.prod(size for axis, size in case.axes.items() if axis not in SLOW_AXES)
    more = kernel_cycles(sharing) if kernels else 0
    found = aot.preflight(tx, params, topology=case.topology)
    if not found.compiles:
        raise RuntimeError(f"{name}: {found.error}")
    kinds: dict[str, int] = {}
    for each in found.collectives:
        if each.wire_bytes * each.times > MIB:
            kinds[each.kind] = kinds.get(each.kind, 0) + each.times
    return {
        "method": method,
        "case": name,
        "topology": case.topology,
        "mesh": case.axes,
        "mib": round(found.wire_bytes(between_slices=False) / MIB, 1),
        "mib between slices": round(found.wire_bytes(between_slices=True) / MIB, 1),
        "exchanges above 1 MiB": kinds,
        "mcycles": round(((found.cycles or 0) + more) / 1e6, 2),
        "of which kernels": round(more / 1e6, 2),
        "gflop": round(found.flops / 1e9),
        "temporaries mib": round(found.memory.temporaries / MIB),
        "compile seconds": round(found.seconds, 1),
    }


def missed(case: Case, found: dict[str, Any]) -> list[str]:
    """What a row costs beyond what its case allows."""
    out = [] if found["mib between slices"] == 0 else ["sends between slices"]
    for key, most in (("mib", case.mib), ("mcycles", case.mcycles)):
        if most is not None and found[key] > most:
            out.append(f"{key} {found[key]} > {most}")
    return out


def told(found: dict[str, Any]) -> str:
    """One line of the table."""
    words = (
        f"{found['method']:20} {found['case']:25} {found['mib']:7.1f} MiB",
        f"{found['mib between slices']:6.1f} between slices",
        f"{found['mcycles']:6.2f} Mcycles",
        f"{found['gflop']:5} GFLOP",
        f"{found['compile seconds']:5.1f} s to compile",
        str(found["exchanges above 1 MiB"]),
    )
    return "  ".join(words)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--naive", action="store_true", help="optax.contrib.muon")
    parser.add_argument("--kernels", action="store_true", help="by kernels")
    parser.add_argument("--only", action="append", choices=CASES, help="rows to compile")
    parser.add_argument("--save", action="store_true", help="store the rows")
    args = parser.parse_args()
    method = "optkit.muon, kernels" if args.kernels else "optkit.muon"
    method = "optax.contrib.muon" if args.naive else method
    for name in args.only or CASES:
        found = row(name, CASES[name], method)
        late = [] if args.naive else missed(CASES[name], found)
        print(told(found), f"MISSED: {'; '.join(late)}" if late else "", flush=True)
        if args.save:
            stored = json.loads(STORED.read_text()) if STORED.exists() else []
            key = (found["method"], found["case"])
            kept = [each for each in stored if (each["method"], each["case"]) != key]
            STORED.write_text(json.dumps([*kept, found], indent=1) + "\n")


if __name__ == "__main__":
    main()
