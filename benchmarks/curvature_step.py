"""What a step of a curvature method costs beside Muon's: ``python -m benchmarks.curvature_step``.

The tree of ``benchmarks.step_time`` (29.5 million float32 parameters), state and parameters
donated. Each contestant takes steps one after the other, in turns with the others so that load on
the machine hits all alike. Of a method that refreshes at some steps these are told apart: ``plain``
is the median of the others, ``refresh`` that of these, and of a staggered one ``worst`` is its
slowest step over the median. Targets: a plain step at most 2 times Muon's, a staggered one never
more than 1.5 times the median. ``compile s`` is the processor's time for trace, lower and compile.
What is done so far is told on stderr; ``--layers 1`` is a tree of 7.5 million parameters.
"""

import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import optax

import optkit
from benchmarks import common
from benchmarks.step_time import Contestant

RATE, EVERY = 1e-3, 10
# A plain step over Muon's, and the slowest staggered step over the median.
PLAIN, WORST = 2.0, 1.5
# The vocabulary's side, 8192, has no factor but a diagonal, or none.
LARGEST_SIDE = 2048
# A first step that counts, so that every tenth step refreshes.
SOAP = {"refresh_every": EVERY, "max_precond_dim": LARGEST_SIDE, "first_step": "step"}


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A method, how often it refreshes (0: never), and whether each step refreshes a part."""

    make: Callable[[], optax.GradientTransformation]
    every: int = 0
    staggered: bool = False


ENTRANTS = {
    "muon": Entrant(lambda: optkit.muon(RATE)),
    "adamw": Entrant(lambda: optkit.adamw(RATE)),
    "shampoo": Entrant(lambda: optkit.shampoo(RATE, refresh_every=EVERY, stagger=False), EVERY),
    "shampoo, staggered": Entrant(lambda: optkit.shampoo(RATE, refresh_every=EVERY), EVERY, True),
    "soap": Entrant(lambda: optkit.soap(RATE, **SOAP), EVERY),
    "soap, staggered": Entrant(lambda: optkit.soap(RATE, stagger=True, **SOAP), EVERY, True),
    "psgd_kron": Entrant(
        lambda: optkit.psgd_kron(
            RATE, update_probability=1 / EVERY, max_size_triangular=LARGEST_SIDE
        ),
        EVERY,
    ),
}


def split_times(entrant: Entrant, seconds: list[float]) -> tuple[list[float], list[float]]:
    """Returns the times of plain steps and of refreshing ones; step 1, the first, is not timed."""
    if not entrant.every or entrant.staggered:
        return seconds, []
    plain = [x for i, x in enumerate(seconds, 2) if i % entrant.every]
    return plain, [x for i, x in enumerate(seconds, 2) if i % entrant.every == 0]


def row_of(
    name: str, seconds: list[float], muon: float, run: Contestant, compiling: float
) -> dict[str, Any]:
    """Returns what is told of one contestant."""
    entrant = ENTRANTS[name]
    plain, refreshing = split_times(entrant, seconds)
    median = statistics.median(plain)
    return {
        "name": name,
        "plain_ms": 1e3 * median,
        "of_muon": median / muon,
        "refresh_ms": 1e3 * statistics.median(refreshing) if refreshing else None,
        "worst": max(plain) / median if entrant.staggered else None,
        "compile_s": compiling,
        "state_bytes": optkit.tree.tree_bytes(run.state),
        "steps": len(seconds),
    }


def measure(names: list[str], shapes: Any, steps: int, clock: str) -> list[dict[str, Any]]:
    """Returns one row a contestant, Muon first."""
    grads = common.random_like(shapes, seed=2)
    order = ["muon", *(name for name in names if name != "muon")]
    runs, compiling = {}, {}
    for name in order:
        begin = time.process_time()
        runs[name] = Contestant(ENTRANTS[name].make(), shapes, grads)
        compiling[name] = time.process_time() - begin
        tell(f"{name}: compiled in {compiling[name]:.1f} s")
    taken = dict.fromkeys(order, 0)

    def told(name: str) -> Any:
        done = runs[name]()
        taken[name] += 1
        tell(f"{name}: step {taken[name]} of {steps + 1}")
        return done

    steppers = {name: functools.partial(told, name) for name in order}
    seconds = common.interleave(steppers, steps, clock)
    muon = statistics.median(seconds["muon"])
    return [row_of(name, seconds[name], muon, runs[name], compiling[name]) for name in order]


def tell(text: str) -> None:
    """Says how far the run is; the result goes to stdout."""
    print(text, file=sys.stderr, flush=True)


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """Says of each contestant what it owes to the targets."""
    lines = []
    for row in rows[1:]:
        if ENTRANTS[row["name"]].every and not ENTRANTS[row["name"]].staggered:
            said = common.verdict(row["of_muon"], PLAIN, at_least=False)
            lines.append(
                f"{row['name']}: a plain step takes {row['of_muon']:.2f} of Muon's ({said})"
            )
        if row["worst"] is not None:
            said = common.verdict(row["worst"], WORST, at_least=False)
            lines.append(f"{row['name']}: its worst step takes {row['worst']:.2f} medians ({said})")
    return lines


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table of all contestants."""
    number = lambda x, digits: "" if x is None else f"{x:.{digits}f}"  # noqa: E731
    cells = [
        (
            row["name"],
            number(row["plain_ms"], 1),
            number(row["of_muon"], 2),
            number(row["refresh_ms"], 1),
            number(row["worst"], 2),
            number(row["compile_s"], 1),
            number(row["state_bytes"] / 2**20, 1),
            str(row["steps"]),
        )
        for row in rows
    ]
    head = ("step", "plain ms", "of muon", "refresh ms", "worst", "compile s", "state MiB", "steps")
    return common.table(head, cells)


def main(arguments: list[str] | None = None) -> None:
    """Runs the contestants and prints table and verdicts."""
    parser = common.parser("curvature_step", __doc__)
    parser.add_argument("--steps", type=int, default=2 * EVERY, help="steps of each contestant")
    parser.add_argument("--only", action="append", choices=ENTRANTS, help="may be repeated")
    parser.add_argument("--layers", type=int, default=8, help="of the tree, 8 by default")
    args = parser.parse_args(arguments)
    quick = common.gpt_like(32, 2, 64, 16)
    shapes = quick if args.quick else common.gpt_like(layers=args.layers)
    rows = measure(args.only or list(ENTRANTS), shapes, args.steps, args.clock)
    lines = [] if args.quick else verdicts(rows)  # tiny shapes say nothing of the targets
    millions = sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6
    text = (
        f"{millions:.1f} million parameters, {args.steps} steps, {args.clock} time, "
        f"refreshes every {EVERY}"
    )
    common.report(rows, "\n".join([text, as_text(rows), *lines]), as_json=args.json)


if __name__ == "__main__":
    main()
