"""What a training step costs that stops at a layer: ``python -m benchmarks.drop_layers``.

The decoder of the task "bytelm" (width 128, 4 blocks, 8 windows of 128 bytes), whose layers are the
embedding, each block, and the head. A step is loss, gradients and Muon, with state and parameters
donated. For each cut there is a program that trains the layers from it on. FLOPs of all matrix
products are counted from the jaxpr; beside them stands the compiler's own estimate.

Then the laws that cuts are drawn by: ``expected`` adds up the costs of the cuts, times their
probabilities; ``measured`` draws cuts and waits for each one, as a program a cut has to, or has one
program with a branch for each cut. All take turns within one process. Costs are shares of a step of
plain Muon. What a step is worth is another question: see ``python -m benchmarks.claims``.
"""

import statistics
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit
from benchmarks import common
from benchmarks.flops import matrix_flops
from optkit import tasks

RATE = 0.02
DRAWS = 8  # steps in a round of a run with drawn cuts; fixed ones take two


def laws(layers: int) -> dict[str, np.ndarray]:
    """Returns the probability of each cut for some laws."""
    up = np.arange(1, layers + 1) / (layers * (layers + 1) / 2)
    return {
        "uniform": np.full(layers, 1 / layers),
        "epoch_shifted, first step": up[::-1],
        "epoch_shifted, last step": up,
        "whole or upper half": np.eye(layers)[[0, layers // 2]].mean(axis=0),
    }


class Program(NamedTuple):
    """A compiled step and what it costs by count."""

    compiled: Any
    flops: float  # of matrix products
    estimate: float  # of everything, by the compiler; the body of a loop counts once


class Bench:
    """Compiles steps of one model."""

    def __init__(self, **sizes: int) -> None:
        self.task = tasks.get("bytelm", **sizes)
        self.params = self.task.init(jax.random.key(0))
        self.batch = self.task.batch(0, 0)
        self.layers = optkit.layer_order(self.params).count
        self.plain = optkit.muon(RATE)
        self.dropping = optkit.drop_layers(self.plain)

    def program(self, cut: int | Literal["drawn"] | None) -> Program:
        """Compiles a step: with a fixed cut, with all of them, or of plain Muon."""
        tx = self.plain if cut is None else self.dropping
        full = jax.value_and_grad(self.task.loss, has_aux=True)
        partial = optkit.partial_value_and_grad(self.task.loss, has_aux=True)

        def step(state: Any, params: Any, batch: Any) -> Any:
            extra = {"cut": cut} if isinstance(cut, int) else {}
            if cut is None:
                _, grads = full(params, batch)
            else:
                _, grads = partial(params, extra.get("cut", optkit.next_cut(state)), batch)
            updates, state = tx.update(grads, state, params, **extra)
            return state, optax.apply_updates(params, updates)

        arguments = (jax.eval_shape(tx.init, self.params), self.params, self.batch)
        compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
        estimate = compiled.cost_analysis()["flops"]
        return Program(compiled, matrix_flops(step, *arguments), estimate)

    def run(self, tx: Any, next_program: Callable[[Any], Program], steps: int) -> Callable[[], Any]:
        """Returns a function that takes some steps on parameters of its own."""
        params = jax.tree.map(jnp.copy, self.params)
        held = [tx.init(params), params]

        def round_() -> Any:
            for _ in range(steps):
                held[:] = next_program(held[0]).compiled(*held, self.batch)
            return held

        return round_


def measure(
    rounds: int, clock: str, **sizes: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns a row a cut, and a row a law."""
    bench = Bench(**sizes)
    plain, drawn = bench.program(None), bench.program("drawn")
    cuts = {s: bench.program(s) for s in range(1, bench.layers + 1)}
    random = np.random.default_rng(0)

    def by_law(p: np.ndarray) -> Callable[[Any], Program]:
        def choose(state: Any) -> Program:
            int(optkit.next_cut(state))  # a program a cut has to wait for the draw
            return cuts[1 + int(random.choice(bench.layers, p=p))]

        return choose

    runs = {"muon": bench.run(bench.plain, lambda _: plain, 2)}
    runs |= {s: bench.run(bench.dropping, lambda _, c=c: c, 2) for s, c in cuts.items()}
    known = laws(bench.layers)
    runs |= {name: bench.run(bench.dropping, by_law(p), DRAWS) for name, p in known.items()}
    runs["one program"] = bench.run(bench.dropping, lambda _: drawn, DRAWS)
    seconds = common.interleave(runs, rounds, clock)
    each = {name: DRAWS if name in known or name == "one program" else 2 for name in runs}
    ms = {name: 1e3 * statistics.median(seconds[name]) / each[name] for name in runs}
    rows = [
        {"cut": s, "name": name, "ms": ms[s], "time": ms[s] / ms["muon"], "flops": c.flops,
         "share": c.flops / plain.flops, "estimate": c.estimate / plain.estimate}
        for (s, c), name in zip(cuts.items(), optkit.layer_order(bench.params).names, strict=True)
    ]  # fmt: skip
    found = []
    for name, p in (*known.items(), ("uniform, one program", known["uniform"])):
        measured = ms["one program" if name.endswith("one program") else name] / ms["muon"]
        shares = {key: float(p @ [row[key] for row in rows]) for key in ("share", "time")}
        found.append({"law": name, **shares, "measured": measured})
    rows.insert(0, {"cut": "muon", "name": "all layers, no cut", "ms": ms["muon"], "time": 1.0,
                    "flops": plain.flops, "share": 1.0, "estimate": 1.0})  # fmt: skip
    return rows, found


def as_text(rows: list[dict[str, Any]], found: list[dict[str, Any]]) -> str:
    """Returns both tables."""
    first = common.table(
        ("cut", "first trained", "GFLOP", "share", "compiler's", "ms a step", "share"),
        [
            (str(r["cut"]), r["name"], f"{r['flops'] / 1e9:.3f}", f"{r['share']:.2f}",
             f"{r['estimate']:.2f}", f"{r['ms']:.1f}", f"{r['time']:.2f}")
            for r in rows
        ],
    )  # fmt: skip
    second = common.table(
        ("law", "expected FLOPs", "expected time", "measured time"),
        [(r["law"], *(f"{r[key]:.2f}" for key in ("share", "time", "measured"))) for r in found],
    )
    return f"{first}\n\n{second}"


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = common.parser("drop_layers", __doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all contestants")
    args = parser.parse_args(arguments)
    tiny = {"width": 16, "layers": 1, "heads": 2, "context": 16, "batch": 2}
    if args.quick:
        rows, found = measure(1, args.clock, **tiny)
    else:
        rows, found = measure(args.rounds, args.clock, layers=4)
    report = {"cuts": rows, "laws": found}
    common.report(report, as_text(rows, found), as_json=args.json)


if __name__ == "__main__":
    main()
