"""Newton-Schulz on a TPU, by its compiler: ``python -m benchmarks.tpu_newton_schulz`` (no TPU).

5 steps with Jordan's coefficients in bfloat16, with the division by the norm, for batches of
matrices of real models: by XLA and by the kernel, in both forms. The Gram form has the resets that
``default_resets`` finds safe in bfloat16, or the single one at step 2, which it does not accept.
``plain`` is the iteration as one writes it without scales far from 1 in mind: norm, products, sums.
``x ns`` sets cycles beside ``optkit.linalg.newton_schulz`` by XLA, ``x plain`` beside that.

Cycles are the compiler's static estimate, nothing was run: XLA's estimates of its fusions and
products, and for the kernel the bundles of instructions of each loop of its schedule times its
trips, or the multiplications of the loop over what the matrix units do in a cycle if that is more.
What runs for matrices of unusual units only, whose norm has to be taken with care, counts nothing.
``bundles`` is ``x ns`` without that bound. ``--save`` puts the rows into the stored table.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import tpu
from optkit import aot, linalg
from optkit.aot.kernels import find_kernels
from optkit.aot.schedules import schedules
from optkit.kernels.newton_schulz.arg_specs import ARG_SPECS, ArgSpec

COEFFICIENTS, STEPS = "jordan", 5
# At most this share of the cycles of XLA's standard form.
TARGETS = {(12, 768, 3072): 0.55, (4, 1024, 1024): 0.80, (4, 1024, 4096): 0.50}
# Of a v5e and a v5p, in a cycle: 4 matrix units of 128 by 128.
MULTIPLICATIONS = 4 * 128 * 128
STORED = Path(__file__).parent / "results" / "tpu_newton_schulz.json"

FORMS: dict[str, tuple[Callable[..., jax.Array], dict[str, Any]]] = {
    "ns": (linalg.newton_schulz, {}),
    "gram_ns": (linalg.gram_newton_schulz, {}),
    "gram_ns, 1 reset": (linalg.gram_newton_schulz, {"resets": (2,)}),
}
PROGRAMS = (("plain", "ns"), *((by, form) for by in ("xla", "pallas") for form in FORMS))


class Row(NamedTuple):
    """One program: cycles and bundles of a batch."""

    shape: tuple[int, int, int]
    implementation: str
    form: str
    cycles: int
    bundles: int


def kernel_cycles(compiled: Any, function: Callable[..., Any], *shapes: Any) -> tuple[int, int]:
    """Returns cycles and bundles of the kernels of a function that was just compiled."""
    program = aot.read_hlo(compiled.as_text())
    names = [line.name for line in aot.kernel_calls(program)]
    arguments = (program, jax.make_jaxpr(function)(*shapes), schedules(names))
    totals = []
    for units in (2 * MULTIPLICATIONS, None):
        found = find_kernels(*arguments, flops_per_cycle=units)
        if unknown := [kernel.reason for kernel in found if kernel.cycles is None]:
            raise RuntimeError(f"cycles of a kernel are not known: {unknown[0]}")
        totals.append(sum((kernel.cycles or 0) * kernel.times for kernel in found))
    return totals[0], totals[1]


def plain(x: jax.Array) -> jax.Array:
    """The standard form, written down."""
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for a, b, c in linalg.get_coefficients(COEFFICIENTS, STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


def measure(spec: ArgSpec, implementation: str, form: str, chip: str = "v5e") -> Row:
    """Returns what a program is estimated to take."""

    def run(x: jax.Array) -> jax.Array:
        if implementation == "plain":
            return plain(x)
        function, options = FORMS[form]
        return function(x, COEFFICIENTS, STEPS, implementation=implementation, **options)

    tpu.forget_bundles()
    compiled = tpu.compile_for(chip, run, spec.abstract())
    cycles = bundles = tpu.estimated_cycles(compiled)
    if implementation == "pallas":
        own = kernel_cycles(compiled, run, spec.abstract())
        cycles, bundles = cycles + own[0], bundles + own[1]
    return Row(spec.shape, implementation, form, cycles, bundles)


def save(rows: list[dict[str, Any]]) -> None:
    """Puts rows into the stored table, in place of those of the same chip and shapes."""
    new = {(row["chip"], tuple(row["shape"])) for row in rows}
    known = json.loads(STORED.read_text()) if STORED.exists() else []
    kept = [row for row in known if (row["chip"], tuple(row["shape"])) not in new]
    STORED.write_text(json.dumps(kept + rows, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chip", default="v5e", choices=sorted(tpu.TOPOLOGIES))
    parser.add_argument("--only", action="append", help="part of the name of a shape")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(argv)
    specs = [spec for spec in ARG_SPECS if spec.shape[0] > 1]
    if options.only:
        specs = [spec for spec in specs if any(part in spec.name for part in options.only)]
    saved = []
    print(f"{options.chip}, bfloat16, {STEPS} steps: static estimates of the compiler, not time")
    print(f"{'shape':16} {'by':7} {'form':17} Mcycles   x ns x plain bundles at most")
    for spec in specs:
        rows = [measure(spec, *program, options.chip) for program in PROGRAMS]
        written, own = rows[:2]
        for row in rows:
            shares = [row.cycles / own.cycles, row.cycles / written.cycles]
            target = TARGETS.get(spec.shape) if row.implementation == "pallas" else None
            print(
                f"{row.shape!s:16} {row.implementation:7} {row.form:17} {row.cycles / 1e6:7.3f} "
                f"{shares[0]:6.3f} {shares[1]:7.3f} {row.bundles / own.cycles:7.3f} {target or ''}",
                flush=True,
            )
            named = dict(zip(("x ns", "x plain"), (round(x, 4) for x in shares), strict=True))
            saved.append({**row._asdict(), **named, "chip": options.chip})
    if options.save:
        save(saved)


if __name__ == "__main__":
    main()
