"""What each matrix recipe costs beside muon: ``python -m benchmarks.matrix_recipes [NAME ...]``.

Step time on the GPT-like tree of ``benchmarks.step_time`` (29.5 million parameters), each recipe
taking turns with our muon in one process; time to trace and compile 128 equal 32 x 32 leaves. A
recipe may take 1.3 times muon's step plus what its further matrix work costs at the speed at which
muon's own runs; ``GFLOP`` is that work, counted from the traced program (products and
factorisations, a loop as often as it runs), not measured.
"""

import functools
from typing import Any

import jax

import optkit
from benchmarks import common, compile_time
from benchmarks.flops import matrix_flops
from benchmarks.step_time import Contestant

RATE = 1e-3
# As its docstring advises; its default, full rank, is that of its reference.
VARIANTS = {"dion, rank 1/4": ("dion", {"rank_fraction": 0.25})}
STEP, COMPILE = 1.3, 2.0


def recipes() -> list[str]:
    """Returns all matrix recipes but muon, and their variants."""
    entries = optkit.catalogue.entries(kind="recipe", family="matrix")
    return sorted([*(entry.name for entry in entries if entry.name != "muon"), *VARIANTS])


@functools.cache
def transformation(name: str) -> Any:
    """Returns a recipe with the arguments of its catalogue entry, or a variant of it."""
    recipe, options = VARIANTS.get(name, (name, {}))
    entry = optkit.catalogue.get(recipe)
    return entry.factory(**{"learning_rate": RATE, **entry.example, **options})


def gigaflops(name: str, shapes: Any) -> float:
    """Returns the matrix work of one update."""
    tx = transformation(name)
    state = jax.eval_shape(tx.init, shapes)
    return matrix_flops(tx.update, shapes, state, shapes) / 1e9


def step(name: str, shapes: Any, grads: Any, rounds: int, clock: str) -> dict[str, float]:
    """Returns the best milliseconds of a recipe and of muon, and their compiled memory."""
    runs = {side: Contestant(transformation(side), shapes, grads) for side in ("muon", name)}
    seconds = common.interleave(runs, rounds, clock)
    return {
        "milliseconds": 1e3 * min(seconds[name]),
        "muon_milliseconds": 1e3 * min(seconds["muon"]),
        "peak_mib": common.peak_bytes(runs[name].compiled) / 2**20,
    }


def compiling(name: str, shapes: Any, rounds: int) -> dict[str, float]:
    """Returns the best seconds to trace and compile a recipe and muon, in turns."""
    found: dict[str, list[float]] = {"muon": [], name: []}
    for turn in range(rounds):
        for side in list(found) if turn % 2 else list(found)[::-1]:
            found[side].append(compile_time.measure(transformation(side), shapes)["seconds"])
    return {"seconds": min(found[name]), "muon_seconds": min(found["muon"])}


def measure(name: str, quick: bool, rounds: int, clock: str) -> dict[str, Any]:
    """Returns all numbers of one recipe."""
    shapes = common.gpt_like(32, 1, 64, 16) if quick else common.gpt_like()
    grads = common.random_like(shapes, seed=2)
    row: dict[str, Any] = {"name": name, **step(name, shapes, grads, rounds, clock)}
    row["gflop"], row["muon_gflop"] = gigaflops(name, shapes), gigaflops("muon", shapes)
    muon = row["muon_milliseconds"]
    extra = max(0.0, row["gflop"] - row["muon_gflop"]) / row["muon_gflop"]
    row["allowed"] = muon * (STEP + extra)
    equal = common.equal_leaves(4 if quick else 128, 8 if quick else 32)
    return {**row, **compiling(name, equal, 1 if quick else 2)}


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table with a verdict a line."""
    cells = [
        (
            row["name"],
            f"{row['milliseconds']:.0f}",
            f"{row['milliseconds'] / row['muon_milliseconds']:.2f}",
            f"{row['gflop']:.0f}",
            f"{row['allowed'] / row['muon_milliseconds']:.2f}",
            "met" if row["milliseconds"] <= row["allowed"] else "MISSED",
            f"{row['peak_mib']:.0f}",
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / row['muon_seconds']:.2f}",
            "met" if row["seconds"] <= COMPILE * row["muon_seconds"] else "MISSED",
        )
        for row in rows
    ]
    head = ("recipe", "ms", "x muon", "GFLOP", "allowed x", "step", "peak MiB")
    return common.table((*head, "compile s", "x muon", "compile"), cells)


def main(arguments: list[str] | None = None) -> None:
    """Measures the recipes one after another and prints the table."""
    parser = common.parser("matrix_recipes", __doc__)
    parser.add_argument("name", nargs="*", help="default: every matrix recipe")
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args(arguments)
    rounds = 1 if args.quick else args.rounds
    rows = [measure(name, args.quick, rounds, args.clock) for name in args.name or recipes()]
    common.report(rows, as_text(rows), as_json=args.json)


if __name__ == "__main__":
    main()
