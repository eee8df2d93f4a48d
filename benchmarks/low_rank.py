"""What steps in low-rank subspaces cost beside adamw: ``python -m benchmarks.low_rank [NAME ...]``.

Step time on the GPT-like tree of ``benchmarks.step_time`` (29.5 million parameters) at a quarter of
each matrix's shorter side, a recipe taking turns with adamw in one process; and, by itself, the
first step, which computes every basis: that is what a refresh costs once in 200 steps, all matrices
at once (``stagger=True`` spreads it). State in bytes per parameter. ``products`` is the time of the
two products of each matrix alone, ``P (P^T G)``: where it exceeds a fifth of adamw's step, no
program with dense bases can meet the target.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

import optkit
from benchmarks import common
from benchmarks.step_time import Contestant
from optkit.tree import tree_bytes

RATE = 1e-3
TARGET = 1.2  # times adamw, without a refresh
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "galore_adamw": ("galore_adamw", {}),
    "galore_adamw, randomized": ("galore_adamw", {"basis": "randomized_svd"}),
    "galore_adamw, staggered": ("galore_adamw", {"stagger": True}),
    "fira": ("fira", {}),
    "apollo": ("apollo", {}),
    "apollo_mini": ("apollo_mini", {}),
    "frugal": ("frugal", {}),
}


@functools.cache
def transformation(name: str) -> Any:
    """Returns a variant, or adamw."""
    recipe, options = VARIANTS.get(name, (name, {}))
    return optkit.catalogue.get(recipe).factory(RATE, **options)


class Products:
    """Projects the hidden matrices and maps them back, and nothing else."""

    def __init__(self, shapes: Any, grads: Any) -> None:
        kinds = jax.tree.leaves(optkit.roles(shapes))
        pairs = zip(jax.tree.leaves(grads), kinds, strict=True)
        matrices = [g if g.shape[0] <= g.shape[1] else g.T for g, kind in pairs if kind == "matrix"]
        bases = [g[:, : g.shape[0] // 4] for g in matrices]

        def both(matrices: Any, bases: Any) -> Any:
            product = functools.partial(jnp.matmul, precision="highest")
            return [product(p, product(p.T, g)) for g, p in zip(matrices, bases, strict=True)]

        self.run = functools.partial(jax.jit(both), matrices, bases)

    def __call__(self) -> Any:
        """Multiplies all of them."""
        return self.run()


def measure(name: str, quick: bool, rounds: int, clock: str) -> dict[str, Any]:
    """Returns the numbers of one variant."""
    shapes = common.gpt_like(32, 1, 64, 16) if quick else common.gpt_like()
    grads = common.random_like(shapes, seed=2)
    runs: dict[str, Any] = {
        side: Contestant(transformation(side), shapes, grads) for side in ("adamw", name)
    }
    runs["products"] = Products(shapes, grads)
    begin = common.CLOCKS[clock]()
    jax.block_until_ready(runs[name]())
    first = common.CLOCKS[clock]() - begin
    seconds = common.interleave(runs, rounds, clock)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return {
        "name": name,
        "milliseconds": 1e3 * min(seconds[name]),
        "adamw_milliseconds": 1e3 * min(seconds["adamw"]),
        "products_milliseconds": 1e3 * min(seconds["products"]),
        "refresh_milliseconds": 1e3 * (first - min(seconds[name])),
        "state_bytes": tree_bytes(runs[name].state) / parameters,
        "peak_mib": common.peak_bytes(runs[name].compiled) / 2**20,
    }


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table with a verdict a line."""
    cells = []
    for row in rows:
        ratio = row["milliseconds"] / row["adamw_milliseconds"]
        names = ("milliseconds", "products_milliseconds", "refresh_milliseconds", "peak_mib")
        step, products, refresh, peak = (f"{row[name]:.0f}" for name in names)
        state = f"{row['state_bytes']:.2f}"
        met = common.verdict(ratio, TARGET, at_least=False)
        cells.append((row["name"], step, f"{ratio:.2f}", products, refresh, state, peak, met))
    head = (
        "recipe",
        "step ms",
        "x adamw",
        "products ms",
        "refresh ms",
        "state B/param",
        "peak MiB",
        "",
    )
    return common.table(head, cells)


def main(arguments: list[str] | None = None) -> None:
    """Measures the variants one after another and prints the table."""
    parser = common.parser("low_rank", __doc__)
    parser.add_argument("name", nargs="*", help="default: all variants")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args(arguments)
    rounds = 1 if args.quick else args.rounds
    rows = [measure(name, args.quick, rounds, args.clock) for name in args.name or VARIANTS]
    common.report(rows, as_text(rows), as_json=args.json)


if __name__ == "__main__":
    main()
