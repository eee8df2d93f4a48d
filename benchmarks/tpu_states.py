"""8-bit states on a TPU, by its compiler: ``python -m benchmarks.tpu_states`` (no TPU needed).

Memory: a train step, by default of GPT-2 small's shapes, with ``adamw``, with its moments in 8 bits
left to XLA, and with the kernel that decodes, updates and encodes in one pass. Gradients, state and
parameters are donated. ``scratch`` is what a step needs beside these: with the kernel no moment is
ever written out in float32. Cycles: static estimates of the compiler, see ``benchmarks.tpu``;
nothing was run.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import optkit
from benchmarks import common, memory_shapes, tpu
from optkit.kernels import block_codec
from optkit.kernels.block_codec.arg_specs import ARG_SPECS, ArgSpec
from optkit.kernels.block_codec.geometry import geometry_of
from optkit.kernels.block_codec.tpu import ROWS, columns_of

STORED = Path(__file__).parent / "results" / "tpu_states.json"
RATE = 1e-3
TARGET_STATE, TARGET_SCRATCH = 2.9, 0.05
STEPS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "adamw": lambda: optkit.adamw(RATE),
    "dynamic8, XLA": lambda: optkit.quantize_state(optkit.adamw(RATE), implementation="xla"),
    "dynamic8, kernel": lambda: optkit.quantize_state(optkit.adamw(RATE), implementation="pallas"),
    "dynamic4, kernel": lambda: optkit.quantize_state(
        optkit.adamw(RATE), "dynamic4", implementation="pallas"
    ),
}
TREES: dict[str, Callable[[], Any]] = {
    "gpt2_small": memory_shapes.gpt2_small,
    "gpt_like": common.gpt_like,  # 29.5 million parameters, as in benchmarks.step_time
    "tiny": lambda: common.gpt_like(256, 1, 64, 16),
}


def memory_row(name: str, shapes: Any, chip: str) -> dict[str, Any]:
    """Returns the memory of a compiled step, and what its XLA part is estimated to take."""
    tx = STEPS[name]()

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    arguments = common.abstract_arguments(tx, shapes)
    with warnings.catch_warnings():
        # Whether a gradient's memory is of use is what is asked here.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        compiled = tpu.compile_for(chip, step, *arguments, donate=(0, 1, 2))
    kernel_cycles = 0
    if name.endswith("kernel"):
        bits = 4 if "4" in name else 8
        sizes = [leaf.shape for leaf in jax.tree.leaves(shapes) if leaf.size >= 4096]
        kernel_cycles = sum(kernel(ArgSpec("leaf", shape, bits), chip) for shape in sizes)
    return {
        "name": name,
        "state_bytes": optkit.tree.tree_bytes(arguments[1]),
        "scratch_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "peak_bytes": common.peak_bytes(compiled),
        "cycles": tpu.estimated_cycles(compiled) + kernel_cycles,
    }


_KERNELS: dict[Any, int] = {}


def kernel(spec: ArgSpec, chip: str) -> int:
    """Returns the bundles of Adam's kernel for a leaf: those of a tile times the tiles."""
    shape, codecs = spec.shape, spec.codecs
    form = geometry_of(codecs[0], shape)
    columns = columns_of(form)
    key = (chip, spec.bits, columns, form.is_short)
    if key not in _KERNELS:

        def adam(moments: Any, arrays: Any, scalars: Any) -> Any:
            (m, v), (g, p) = moments, arrays
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            u = scalars[0] * m / (jnp.sqrt(v * scalars[1]) + 1e-8) + 1e-4 * p
            return [-RATE * u], [m, v]

        def run(stored: Any, g: Any, p: Any, a: Any, b: Any) -> Any:
            return block_codec.update_stored(
                adam, stored, [g, p], [a, b], read=codecs, write=codecs, shape=shape,
                implementation="pallas",
            )  # fmt: skip

        full, one = spec.abstract(), jax.ShapeDtypeStruct((), jnp.float32)
        tpu.forget_bundles()
        stored = [codec.shapes(shape) for codec in codecs]
        tpu.compile_for(chip, run, stored, full, full, one, one, donate=(0,))
        _KERNELS[key] = tpu.most_bundles()
    return _KERNELS[key] * math.ceil(form.rows / ROWS) * math.ceil(form.width / columns)


def main(arguments: list[str] | None = None) -> None:
    """Compiles the steps and prints a table and verdicts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_states",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--chip", choices=tpu.TOPOLOGIES, default="v5e")
    parser.add_argument("--tree", choices=TREES, default="gpt2_small")
    parser.add_argument("--only", action="append", choices=STEPS, help="some of the rows")
    parser.add_argument("--store", action="store_true", help="keep the table beside this file")
    parser.add_argument(
        "--kernels", action="store_true", help="Adam's kernel for leaves of real models instead"
    )
    args = parser.parse_args(arguments)
    if args.kernels:
        print(kernels(args.chip))
        return
    # XLA's table lookups in the embedding of GPT-2 take the compiler more than 20 minutes.
    names = [name for name in STEPS if args.tree != "gpt2_small" or "XLA" not in name]
    common.fresh_process()
    rows = [memory_row(name, TREES[args.tree](), args.chip) for name in args.only or names]
    print(text(rows))
    if args.store:
        asked = {"chip": args.chip, "tree": args.tree}
        STORED.write_text(json.dumps({**asked, "rows": rows}, indent=1) + "\n")


def kernels(chip: str) -> str:
    """Returns a table of the kernel's cycles for each of ``ARG_SPECS``."""
    cycles = [(spec, kernel(spec, chip)) for spec in ARG_SPECS]
    return common.table(
        ("leaf", "shape", "bits", "est. Mcycles", "entries a cycle"),
        [
            (
                spec.name,
                " x ".join(map(str, spec.shape)),
                str(spec.bits),
                f"{found / 1e6:.2f}",
                f"{math.prod(spec.shape) / found:.1f}",
            )
            for spec, found in cycles
        ],
    )


def text(rows: list[dict[str, Any]]) -> str:
    """Returns the table and what it says."""
    first = rows[0]
    lines = [
        common.table(
            ("step", "state MiB", "scratch MiB", "peak MiB", "est. Mcycles", "ratio"),
            [
                (
                    row["name"],
                    *(
                        f"{row[k] / 2**20:.1f}"
                        for k in ("state_bytes", "scratch_bytes", "peak_bytes")
                    ),
                    f"{row['cycles'] / 1e6:.1f}",
                    f"{row['cycles'] / first['cycles']:.2f}",
                )
                for row in rows
            ],
        )
    ]
    for row in rows:
        if row["name"] == "dynamic8, kernel" and first["name"] == "adamw":
            smaller = first["state_bytes"] / row["state_bytes"]
            scratch = row["scratch_bytes"] / first["state_bytes"]
            lines.append(
                f"states {smaller:.2f} x smaller "
                f"({common.verdict(smaller, TARGET_STATE, at_least=True)}); scratch {scratch:.3f} "
                f"of float32 moments ({common.verdict(scratch, TARGET_SCRATCH, at_least=False)})"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
