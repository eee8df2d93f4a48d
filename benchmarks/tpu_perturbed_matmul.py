"""A population's product on a TPU, by its compiler: ``python -m benchmarks.tpu_perturbed_matmul``.

Weights and rows in bfloat16, noise in float32. XLA's program of the operation's meaning beside the
kernel's, noise given and noise generated: by the counters of the kernel, and for XLA also by
``jax.random``, a key a pair. ``x bound`` sets cycles beside the least that the matrix units need
for the shared product alone. Then the sum over the pairs that an update is: XLA's, of given factors
and with noise drawn, and the kernel ``population_update``, beside the bound of its product.

Cycles are the compiler's static estimate, nothing was run: XLA's estimates of its fusions and
products, and for the kernel its bundles times its grid, or the bound if that is more. Where columns
are in several tiles the thin product with the right factor counts in each, though the kernel skips
it in all but the first. The update's kernel has two loops, whose bodies its schedule shows once: it
is compiled again with two passes of one of them in a body, and the difference counts as often as
the loop runs. XLA's estimates know of memory, bundles do not. No TPU is needed.
``--save`` keeps the rows in the table beside this file.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks import tpu
from optkit.evolution.noise import Factors
from optkit.kernels.blocks import LANES, rounded_up
from optkit.kernels.perturbed_matmul import Counters, perturbed_rows
from optkit.kernels.perturbed_matmul.arg_specs import ARG_SPECS, ArgSpec
from optkit.kernels.perturbed_matmul.tpu import Tiles
from optkit.kernels.population_update import arg_specs as updates
from optkit.kernels.population_update import tpu as update_kernel

# Of a v5e and a v5p, in a cycle: 4 matrix units of 128 by 128.
MULTIPLICATIONS = 4 * 128 * 128
STORED = Path(__file__).parent / "results" / "tpu_perturbed_matmul.json"
NOISES = ("given", "counters", "jax.random")


class Row(NamedTuple):
    """One program."""

    name: str
    by: str
    noise: str
    cycles: int
    bound: int


def product(spec: ArgSpec, by: str, noise: str) -> tuple[Callable[..., jax.Array], list[Any]]:
    """Returns a program and the shapes of what it takes."""
    groups, rows, n, m, rank = spec[1:]

    def run(x: Any, w: Any, scale: Any, *given: Any) -> jax.Array:
        if noise == "counters":
            given = Counters(given[0], 0, rank)
        elif noise == "jax.random":
            given = drawn(given[0], groups, n, m, rank)
        return perturbed_rows(x, w, given, scale, implementation=by)

    struct = jax.ShapeDtypeStruct
    key = [struct((2,), jnp.uint32)]
    factors = [struct((groups, size, rank), jnp.float32) for size in (m, n)]
    shapes = [struct((groups, rows, n), jnp.bfloat16), struct((n, m), jnp.bfloat16)]
    shapes += [struct((groups, rows), jnp.float32), *(factors if noise == "given" else key)]
    return run, shapes


def drawn(key: Any, pairs: int, n: int, m: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """Factors as ``population_perturb`` draws them: a key a pair."""
    keys = jax.vmap(lambda pair: jax.random.fold_in(jax.random.wrap_key_data(key), pair))(
        jnp.arange(pairs, dtype=jnp.uint32)
    )
    both = jax.vmap(lambda own: jax.random.normal(own, (n + m, rank)))(keys)
    return both[:, n:], both[:, :n]


def measure(spec: ArgSpec, by: str, noise: str, chip: str) -> Row:
    """Compiles a product."""
    tpu.forget_bundles()
    run, shapes = product(spec, by, noise)
    cycles = tpu.estimated_cycles(tpu.compile_for(chip, run, *shapes))
    bound = spec.groups * spec.rows * spec.n * spec.m // MULTIPLICATIONS
    if by == "pallas":
        tiles = Tiles.of(spec.groups, spec.rows, rounded_up(spec.n, LANES), spec.m, 2)
        points = -(-spec.groups // tiles.groups) * -(-spec.rows // tiles.rows)
        points *= -(-spec.m // tiles.columns)
        cycles += max(tpu.most_bundles() * points, bound)
    return Row(spec.name, by, noise, cycles, bound)


def measure_update(spec: updates.ArgSpec, by: str, noise: str, chip: str) -> Row:
    """Compiles the weighted sum of the noise of all pairs."""
    _, pairs, n, m, rank = spec

    def run(weights: Any, *given: Any) -> jax.Array:
        if noise == "counters":
            own = Counters(given[0], 0, rank)
            given = own.factor("a", pairs, m), own.factor("b", pairs, n)
        elif noise == "jax.random":
            given = drawn(given[0], pairs, n, m, rank)
        return Factors(*given, left=(1,), right=(0,)).weighted_sum(weights)

    struct = jax.ShapeDtypeStruct
    shapes = [struct((pairs,), jnp.float32)]
    if noise == "given":
        shapes += [struct((pairs, size, rank), jnp.float32) for size in (m, n)]
    else:
        shapes.append(struct((2,), jnp.uint32))
    bound = pairs * rank * n * m // MULTIPLICATIONS
    if by == "pallas":
        cycles = max(kernel_cycles(spec, chip, shapes), bound)
    else:
        cycles = tpu.estimated_cycles(tpu.compile_for(chip, run, *shapes))
    return Row(update_name(spec), by, noise, cycles, bound)


def update_name(spec: updates.ArgSpec) -> str:
    """Returns what an update is called in the table."""
    ranks = f", rank {spec.rank}" if spec.rank > 1 else ""
    return f"update of ({spec.n}, {spec.m}), {spec.pairs} pairs{ranks}"


def kernel_cycles(spec: updates.ArgSpec, chip: str, shapes: list[Any]) -> int:
    """Returns the bundles of the update's kernel times its grid, each loop as often as it runs."""
    _, pairs, n, m, rank = spec
    tiles = update_kernel.Tiles.of(pairs, n, m)
    bundles, outside = [], 0
    for unroll in ((1, 1), (2, 1), (1, 2)):

        def run(weights: Any, key: Any, unroll: Any = unroll) -> jax.Array:
            words = Counters(key, 0, rank).words()
            return update_kernel.population_update(
                weights, words, shape=(n, m), rank=rank, unroll=unroll
            )

        tpu.forget_bundles()
        outside = tpu.estimated_cycles(tpu.compile_for(chip, run, *shapes))
        bundles.append(tpu.most_bundles())
    once, *twice = bundles
    more = ((passes - 1) * (both - once) for passes, both in zip(tiles.runs(), twice, strict=True))
    return outside + math.prod(tiles.grid(pairs, n, m, rank)) * (once + sum(more))


def main(argv: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tpu_perturbed_matmul",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--chip", default="v5e", choices=sorted(tpu.TOPOLOGIES))
    parser.add_argument("--only", action="append", help="part of the name of a row")
    parser.add_argument("--by", choices=("xla", "pallas"), help="of updates: one of them alone")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args(argv)

    def wanted(name: str) -> bool:
        return not options.only or any(part in name for part in options.only)

    rows: list[Row] = []
    print(f"{options.chip}: static estimates of the compiler, not time")
    print(f"{'product':38} {'noise':10} {'by':6} {'kcycles':>8} {'x bound':>8} {'x xla':>6}")
    for spec in filter(lambda spec: wanted(spec.name), ARG_SPECS):
        for noise in NOISES:
            mine = [
                measure(spec, by, noise, options.chip)
                for by in ("xla", "pallas")
                if noise != "jax.random" or by == "xla"
            ]
            rows += mine
            for row in mine:
                print(text(row, mine[0]), flush=True)
    for update in updates.ARG_SPECS:
        if wanted(update_name(update)):
            programs = [("xla", noise) for noise in NOISES] + [("pallas", "counters")]
            mine = []
            for by, noise in programs:
                if options.by in (None, by):
                    mine.append(measure_update(update, by, noise, options.chip))
                    rows.append(mine[-1])
                    print(text(mine[-1], mine[0]), flush=True)
    if options.save:
        save([{**row._asdict(), "chip": options.chip} for row in rows])


def save(rows: list[dict[str, Any]]) -> None:
    """Puts rows into the stored table, in place of those of the same programs."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["chip"], row["name"], row["noise"], row["by"]

    held = json.loads(STORED.read_text()) if STORED.exists() else []
    table = {key(row): row for row in (*held, *rows)}
    STORED.write_text(json.dumps(list(table.values()), indent=1) + "\n")


def text(row: Row, xla: Row) -> str:
    """Returns a line of the table."""
    return (
        f"{row.name:38} {row.noise:10} {row.by:6} {row.cycles / 1e3:8.1f} "
        f"{row.cycles / row.bound:8.2f} {row.cycles / xla.cycles:6.2f}"
    )


if __name__ == "__main__":
    main()
