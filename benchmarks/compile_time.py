"""Time to compile a step of many equal leaves: ``python -m benchmarks.compile_time``.

128 kernels of 32x32. Per-leaf code is traced, lowered and compiled once for each of them; stacked
code once in all. Seconds are trace + lower + compile, the best of several interleaved rounds, each
from empty caches and without the persistent one; "cpu" is the processor's time for the same, which
other programs disturb less. The text is what XLA is given (StableHLO) and
what it makes of it (optimised HLO): unlike seconds, its length is the same on every machine.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import optax

import optkit
from benchmarks import common

# name: (ours, theirs, least ratio of seconds, least ratio of text), None where nothing is promised
Pair = tuple[
    Callable[[], optax.GradientTransformation],
    Callable[[], optax.GradientTransformation],
    float | None,
    float | None,
]
PAIRS: dict[str, Pair] = {
    "muon": (lambda: optkit.muon(1e-3), lambda: optax.contrib.muon(1e-3), 5.0, 10.0),
    "adamw": (lambda: optkit.adamw(1e-3), lambda: optax.adamw(1e-3), None, None),
    "lion": (lambda: optkit.lion(1e-3), lambda: optax.lion(1e-3), None, None),
}


def measure(tx: optax.GradientTransformation, shapes: Any) -> dict[str, float]:
    """Returns seconds of each stage and the lengths of the program's texts."""
    common.fresh_process()
    arguments = common.abstract_arguments(tx, shapes)
    step = common.make_step(tx)
    processor = time.process_time()
    marks = [time.perf_counter()]
    traced = step.trace(*arguments)
    marks.append(time.perf_counter())
    lowered = traced.lower()
    marks.append(time.perf_counter())
    compiled = lowered.compile()
    marks.append(time.perf_counter())
    processor = time.process_time() - processor
    trace, lower, finish = (b - a for a, b in itertools.pairwise(marks))
    return {
        "seconds": marks[-1] - marks[0],
        "cpu": processor,
        "trace": trace,
        "lower": lower,
        "compile": finish,
        "stablehlo": len(lowered.as_text()),
        "hlo": len(compiled.as_text()),
    }


def best_of(name: str, shapes: Any, repeats: int) -> list[dict[str, Any]]:
    """Returns the best round of both sides of a pair."""
    ours, theirs, _, _ = PAIRS[name]
    label = "optax.contrib.muon" if name == "muon" else f"optax.{name}"
    sides = {f"optkit.{name}": ours(), label: theirs()}
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for turn in range(repeats):
        for side in list(sides) if turn % 2 else list(sides)[::-1]:
            rounds[side].append(measure(sides[side], shapes))
    return [
        {"name": side, **min(found, key=lambda one: one["seconds"])}
        for side, found in rounds.items()
    ]


def verdicts(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Says how the two sides compare and whether the targets are met."""
    ours, theirs = rows
    lines = []
    for key, target in (
        ("seconds", PAIRS[name][2]),
        ("cpu", PAIRS[name][2]),
        ("stablehlo", PAIRS[name][3]),
        ("hlo", PAIRS[name][3]),
    ):
        ratio = theirs[key] / ours[key]
        owed = f" ({common.verdict(ratio, target, at_least=True)})" if target else ""
        lines.append(f"{name}: {theirs['name']} / {ours['name']} in {key}: {ratio:.2f}{owed}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Compiles the pairs and prints table and verdicts."""
    parser = common.parser("compile_time", __doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--leaves", type=int, default=128)
    parser.add_argument("--only", action="append", choices=PAIRS, help="may be repeated")
    args = parser.parse_args(arguments)
    if args.quick:
        args.repeats, args.leaves = 1, 4
    shapes = common.equal_leaves(args.leaves)
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    measure(optax.sgd(1.0), common.equal_leaves(1))  # the first compilation starts the compiler
    for name in args.only or PAIRS:
        found = best_of(name, shapes, args.repeats)
        rows += found
        if not args.quick:  # a few leaves say nothing of the targets
            lines += verdicts(name, found)
    keys = ("seconds", "cpu", "trace", "lower", "compile")
    cells = [
        (
            row["name"],
            *(f"{row[key]:.2f}" for key in keys),
            f"{row['stablehlo']:,}",
            f"{row['hlo']:,}",
        )
        for row in rows
    ]
    head = ("step", *keys, "StableHLO chars", "HLO chars")
    text = f"{args.leaves} leaves of 32x32\n" + common.table(head, cells)
    common.report(rows, "\n".join([text, *lines]), as_json=args.json)


if __name__ == "__main__":
    main()
