"""Time and memory of one optimizer step against Optax: ``python -m benchmarks.step_time``.

A GPT-like tree (width 512, 8 layers, vocabulary 8192: 67 leaves, 29.5 million float32 parameters),
``step(grads, state, params) -> (state, params)`` with state and parameters donated. The contestants
of a comparison take turns within one process, so that load on the machine hits all alike; a time is
the best of its rounds. ``ratio`` is Optax's best time over ours, ``paired`` the median over the
rounds of the same; above 1 we are faster. Memory is what the compiled step needs in all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers

import optkit
from benchmarks import common

RATE, DECAY = 1e-3, 1e-2
# Our share of Optax's memory; the slack is for scalars, such as the learning rate in our states.
MEMORY = 1.001


def _routed_like_optkit(params: Any) -> Any:
    """Dimension numbers that send to Muon what optkit's roles send there."""
    return jax.tree.map(
        lambda role: MuonDimensionNumbers() if role in optkit.MATRIX_ROLES else None,
        optkit.roles(params),
    )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One method of optkit against its counterparts in Optax, equal in their hyperparameters."""

    ours: Callable[[], optax.GradientTransformation]
    theirs: dict[str, Callable[[], optax.GradientTransformation]]
    target: float  # least ratio of times
    rounds: int  # per --repeats: quick steps need more rounds for a stable best


COMPARISONS = {
    "muon": Comparison(
        lambda: optkit.muon(RATE, weight_decay=DECAY),
        {
            # As it comes, Optax orthogonalizes every 2-D leaf, embeddings too.
            "optax.contrib.muon": lambda: optax.contrib.muon(RATE, weight_decay=DECAY),
            "optax.contrib.muon, same routing": lambda: optax.contrib.muon(
                RATE, weight_decay=DECAY, muon_weight_dimension_numbers=_routed_like_optkit
            ),
        },
        target=3.5,
        rounds=1,
    ),
    "adamw": Comparison(
        lambda: optkit.adamw(RATE, weight_decay=DECAY),
        {"optax.adamw": lambda: optax.adamw(RATE, weight_decay=DECAY)},
        target=1 / 1.05,
        rounds=6,
    ),
    "lion": Comparison(
        lambda: optkit.lion(RATE, weight_decay=DECAY),
        {"optax.lion": lambda: optax.lion(RATE, weight_decay=DECAY)},
        target=1 / 1.05,
        rounds=6,
    ),
}


class Contestant:
    """A compiled step with buffers of its own."""

    def __init__(self, tx: optax.GradientTransformation, shapes: Any, grads: Any) -> None:
        step = common.make_step(tx)
        self.compiled = step.lower(*common.abstract_arguments(tx, shapes)).compile()
        self.grads = grads
        self.params = common.random_like(shapes, seed=1)
        # A state may hold the parameters themselves, and a buffer can be donated once only.
        self.state = jax.tree.map(lambda x: x.copy(), tx.init(self.params))

    def __call__(self) -> Any:
        """Takes a step."""
        self.state, self.params = self.compiled(self.grads, self.state, self.params)
        return self.params


def compare(name: str, shapes: Any, repeats: int, clock: str) -> list[dict[str, Any]]:
    """Returns one row a contestant, ours first."""
    chosen = COMPARISONS[name]
    ours = f"optkit.{name}"
    makers = {ours: chosen.ours, **chosen.theirs}
    grads = common.random_like(shapes, seed=2)
    runs = {label: Contestant(make(), shapes, grads) for label, make in makers.items()}
    seconds = common.interleave(runs, repeats * chosen.rounds, clock)
    rows = []
    for label, run in runs.items():
        ratio = None
        if label != ours:
            ratio = dataclasses.asdict(common.Ratio.of(seconds[ours], seconds[label]))
        rows.append(
            {
                "name": label,
                "milliseconds": 1e3 * min(seconds[label]),
                "rounds": len(seconds[label]),
                "peak_bytes": common.peak_bytes(run.compiled),
                "state_bytes": optkit.tree.tree_bytes(run.state),
                "ratio": ratio,
            }
        )
    return rows


def verdicts(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """Says of each counterpart what we win, lose, and owe to our targets."""
    ours, lines = rows[0], []
    for row in rows[1:]:
        ratio = row["ratio"]["best"]
        faster = f"{ratio:.2f} x faster" if ratio >= 1 else f"{1 / ratio:.2f} x SLOWER"
        time = common.verdict(ratio, round(COMPARISONS[name].target, 3), at_least=True)
        share = ours["peak_bytes"] / row["peak_bytes"]
        memory = common.verdict(share, MEMORY, at_least=False)
        lines.append(
            f"{ours['name']} is {faster} than {row['name']} (ratio {ratio:.2f}, {time}) and "
            f"needs {share:.3f} of its memory ({memory})"
        )
    return lines


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table of all contestants."""
    cells = [
        (
            row["name"],
            f"{row['milliseconds']:.1f}",
            f"{row['ratio']['best']:.2f}" if row["ratio"] else "",
            f"{row['ratio']['median']:.2f}" if row["ratio"] else "",
            f"{row['peak_bytes'] / 2**20:.1f}",
            f"{row['state_bytes'] / 2**20:.1f}",
            str(row["rounds"]),
        )
        for row in rows
    ]
    head = ("step", "best ms", "ratio", "paired", "peak MiB", "state MiB", "rounds")
    return common.table(head, cells)


def main(arguments: list[str] | None = None) -> None:
    """Runs the comparisons and prints table and verdicts."""
    parser = common.parser("step_time", __doc__)
    parser.add_argument("--repeats", type=int, default=7, help="rounds, more for quick steps")
    parser.add_argument("--only", action="append", choices=COMPARISONS, help="may be repeated")
    args = parser.parse_args(arguments)
    shapes = common.gpt_like(32, 2, 64, 16) if args.quick else common.gpt_like()
    repeats = min(args.repeats, 2) if args.quick else args.repeats
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for name in args.only or COMPARISONS:
        found = compare(name, shapes, repeats, args.clock)
        rows += found
        if not args.quick:  # tiny shapes say nothing of the targets
            lines += verdicts(name, found)
    leaves = jax.tree.leaves(shapes)
    size = sum(leaf.size for leaf in leaves)
    text = f"{len(leaves)} leaves, {size:,} float32 parameters, {args.clock} time"
    common.report(rows, "\n".join([text, as_text(rows), *lines]), as_json=args.json)


if __name__ == "__main__":
    main()
