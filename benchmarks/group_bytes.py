"""How many bytes of equal matrices to stack on this platform: ``python -m benchmarks.group_bytes``.

Equal matrices are orthogonalized one by one, in stacks of 2, 4, ... and all at once, the stacks
either as one batched product or matrix by matrix in a compiled loop (``jax.lax.map``). Stacking
costs two copies and may lose the fast single product; it saves calls, and above all compilation.
From the measured times follows the time of every byte budget, hence the best budget: the one with
the least slowdown against the best stack of each shape (geometric mean over shapes). Compare it
with ``optkit.tree.GROUP_BYTES``.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import optkit
from benchmarks import common
from optkit.linalg import orthogonal_factor

# rows, columns, how many
SHAPES = [
    (32, 32, 128),
    (64, 64, 64),
    (64, 256, 32),
    (128, 128, 32),
    (128, 512, 16),
    (256, 256, 16),
    (256, 1024, 8),
    (512, 512, 8),
    (512, 2048, 4),
]
QUICK = [(8, 8, 4), (16, 32, 2)]
BUDGETS = [0, *(2**power for power in range(12, 27))]
Leaves = list[jax.Array]


def batched(stack: jax.Array) -> jax.Array:
    """Works on all matrices of a stack in one batched product."""
    return orthogonal_factor(stack)


def looped(stack: jax.Array) -> jax.Array:
    """Works on the matrices of a stack one after the other, compiled once."""
    return jax.lax.map(orthogonal_factor, stack) if stack.ndim == 3 else orthogonal_factor(stack)


FORMS = {"batched": batched, "looped": looped}


def grouped(function: Callable[[jax.Array], jax.Array], size: int, leaves: Leaves) -> Leaves:
    """Applies a function to the leaves in stacks of a size."""
    one = leaves[0].size * leaves[0].dtype.itemsize
    return optkit.tree.map_groups(function, leaves, group_bytes=size * one)


def compiled(form: str, size: int, leaves: Leaves) -> tuple[Callable[[], Any], float]:
    """Returns a compiled call and the seconds that tracing, lowering and compiling it took."""
    common.fresh_process()
    begin = time.perf_counter()
    run = jax.jit(functools.partial(grouped, FORMS[form], size)).lower(leaves).compile()
    return functools.partial(run, leaves), time.perf_counter() - begin


def measure(shape: tuple[int, int, int], repeats: int, clock: str) -> list[dict[str, Any]]:
    """Returns one row for each size and form of the stacks of a shape."""
    rows, columns, count = shape
    leaves = list(common.random_like([jax.ShapeDtypeStruct((rows, columns), np.float32)] * count))
    sizes = [1]
    while sizes[-1] < count:
        sizes.append(min(2 * sizes[-1], count))
    cases = [("batched", size) for size in sizes] + [("looped", size) for size in sizes[1:]]
    made = {case: compiled(*case, leaves) for case in cases}
    calls = {case: call for case, (call, _) in made.items()}
    # Short calls need more rounds; all take about as long in all.
    jax.block_until_ready(calls[cases[0]]())
    begin = time.perf_counter()
    jax.block_until_ready(calls[cases[0]]())
    rounds = max(repeats, min(20 * repeats, int(0.02 * repeats / (time.perf_counter() - begin))))
    seconds = common.interleave(calls, rounds, clock)
    return [
        {
            "shape": f"{count} x {rows}x{columns}",
            "form": case[0],
            "stack": case[1],
            "stack_bytes": case[1] * rows * columns * 4,
            "milliseconds": 1e3 * min(seconds[case]),
            "compile_seconds": made[case][1],
        }
        for case in cases
    ]


def chosen(rows: list[dict[str, Any]], form: str, budget: int) -> dict[str, Any]:
    """Returns the row that a byte budget selects from those of one shape."""
    one = rows[0]["stack_bytes"]
    fitting = [r for r in rows if r["stack_bytes"] <= max(budget, one)]
    return max(
        (r for r in fitting if r["form"] == form or r["stack"] == 1), key=lambda r: r["stack"]
    )


def slowdowns(measured: list[list[dict[str, Any]]], form: str) -> list[dict[str, Any]]:
    """Returns, for each budget, time relative to the best stacking and seconds to compile."""
    out = []
    for budget in BUDGETS:
        picked = [chosen(rows, form, budget) for rows in measured]
        ratios = [
            row["milliseconds"] / min(r["milliseconds"] for r in rows)
            for row, rows in zip(picked, measured, strict=True)
        ]
        out.append(
            {
                "form": form,
                "budget": budget,
                "slowdown": statistics.geometric_mean(ratios),
                "worst": max(ratios),
                "compile_seconds": sum(row["compile_seconds"] for row in picked),
            }
        )
    return out


def recommended(found: list[dict[str, Any]], slack: float = 0.02) -> int:
    """Returns the budget that compiles fastest among those as fast as the best, but for slack."""
    least = min(row["slowdown"] for row in found)
    equal = [row for row in found if row["slowdown"] <= least * (1 + slack)]
    return min(equal, key=lambda row: row["compile_seconds"])["budget"]


def _power(budget: int) -> str:
    return f"2**{int(math.log2(budget))}" if budget else "0"


def as_text(measured: list[list[dict[str, Any]]], found: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the tables and the recommendation."""
    stacks = [
        (
            row["shape"],
            row["form"],
            str(row["stack"]),
            f"{row['stack_bytes'] / 2**10:.0f}",
            f"{row['milliseconds']:.2f}",
            f"{row['compile_seconds']:.2f}",
        )
        for rows in measured
        for row in rows
    ]
    budgets = [
        (
            _power(row["budget"]),
            row["form"],
            f"{row['slowdown']:.3f}",
            f"{row['worst']:.2f}",
            f"{row['compile_seconds']:.2f}",
        )
        for rows in found.values()
        for row in rows
    ]
    platform = jax.default_backend()
    table = optkit.tree.GROUP_BYTES
    present = table.get(platform, table["default"])
    return "\n".join(
        [
            common.table(("shape", "form", "stack", "KiB", "best ms", "compile s"), stacks),
            "",
            common.table(("budget", "form", "slowdown", "worst", "compile s in all"), budgets),
            "",
            *(f"{form}: best budget {_power(recommended(rows))}" for form, rows in found.items()),
            f"GROUP_BYTES for {platform} is {present} bytes",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    """Measures all shapes and prints tables and the best budgets."""
    parser = common.parser("group_bytes", __doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds, more for quick calls")
    args = parser.parse_args(arguments)
    shapes = QUICK if args.quick else SHAPES
    measured = [measure(shape, 1 if args.quick else args.repeats, args.clock) for shape in shapes]
    found = {form: slowdowns(measured, form) for form in FORMS}
    rows = {"stacks": measured, "budgets": found}
    common.report(rows, as_text(measured, found), as_json=args.json)


if __name__ == "__main__":
    main()
