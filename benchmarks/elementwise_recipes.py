"""Element-wise recipes beside AdamW: ``python -m benchmarks.elementwise_recipes [NAME ...]``.

Step time on the GPT-like tree of ``benchmarks.step_time`` (29.5 million parameters), each recipe
taking turns with ``optax.adamw`` in one process. A step at the speed of memory reads gradient,
parameters and state once and writes parameters and state once; where a reduction over a leaf or the
tree has to end before the step can begin, what the step needs is read again. ``bytes`` is that
amount over AdamW's 28 a parameter, ``time`` the ratio of the best times. A recipe may take 1.1
times as long as its bytes say, and what drawing its noise takes by itself, measured beside it.

``temporary`` is what the compiled step needs beside arguments and results, in bytes a parameter:
``needed`` says why. XLA's CPU compiler writes one result a loop. An intermediate that two results
read is therefore an array, and a state is copied if its old value makes two results (which costs
``optax.lion`` a copy); accelerators' fusions have several results, so that there it is less.
"""

import dataclasses
import functools
from typing import Any

import jax
import optax

import optkit
from benchmarks import common
from benchmarks.step_time import DECAY, RATE, Contestant

FAMILIES = ("adaptive", "sign", "momentum", "continual", "sampling", "normalised")
ADAMW_BYTES, SLACK = 28.0, 1.1
FREE = 0.2  # bytes a parameter for scalars, partial sums and what small leaves add


@dataclasses.dataclass(frozen=True)
class Needs:
    """What the maths of a recipe needs, in bytes of a float32 parameter.

    Attributes:
      tree: arrays of the whole tree, beside arguments and results.
      leaf: arrays of one leaf after the other: the compiler may have more than one at a time.
      again: what is read a second time, after a reduction.
      why: the reasons.
    """

    tree: float = 0.0
    leaf: float = 0.0
    again: float = 0.0
    why: str = "one pass"


_NOISE = "noise, drawn for leaves of one shape in one loop, and its bits"
_UNITS = "in units that cannot overflow"
NEEDS = {
    "adam_sgld": Needs(8.0, 8.0, 0.0, _NOISE),
    "adamp": Needs(12.0, 0.0, 20.0, f"u; weights and gradient {_UNITS}"),
    "am_adamw": Needs(8.0, 4.0, 12.0, "the metric, and its damping, for the sums and the step"),
    "am_msgd": Needs(0.0, 8.0, 8.0, f"gradients and differences {_UNITS}"),
    "auon": Needs(8.0, 4.0, 24.0, f"the look-ahead, and it {_UNITS}"),
    "cast_adams": Needs(4.0, 0.0, 0.0, "what enters the second moment, and the mask"),
    "cautious_adamw": Needs(4.0, 0.0, 12.0, "the mask, for its mean"),
    "cautious_lion": Needs(4.0, 0.0, 8.0, "the mask, for its mean"),
    "classp": Needs(4.0, 0.0, 0.0, "the gradient that passed, for the sum and the step"),
    # Gradients and momentum a second time, after the norms of both.
    "clipup": Needs(0.0, 4.0, 8.0, f"a leaf of gradients and of velocities {_UNITS}"),
    "langevin_adam": Needs(8.0, 8.0, 0.0, _NOISE),
    "mars_adamw": Needs(4.0, 0.0, 8.0, "the corrected gradient, for its norm and the moments"),
    "mars_lion": Needs(4.0, 0.0, 8.0, "the corrected gradient, for its norm and the moments"),
    "normalized_momentum": Needs(0.0, 4.0, 4.0, f"the momentum {_UNITS}"),
    "psgld": Needs(8.0, 8.0, 0.0, _NOISE),
    "sgdp": Needs(8.0, 0.0, 16.0, f"weights and gradient {_UNITS}"),
    "sgld": Needs(8.0, 8.0, 0.0, _NOISE),
    "upgd": Needs(8.0, 8.0, 12.0, _NOISE),
    "upgd_adam": Needs(8.0, 8.0, 16.0, _NOISE),
}
NOISY = tuple(name for name, needs in NEEDS.items() if needs.why == _NOISE)


def recipes() -> list[str]:
    """Returns all recipes without matrix work; ``quantized_states`` measures those with codes."""
    entries = [e for e in optkit.catalogue.entries(kind="recipe") if e.family in FAMILIES]
    return [entry.name for entry in entries if "quantization" not in entry.tags]


@functools.cache
def transformation(name: str) -> Any:
    """Returns a recipe with the arguments of its catalogue entry, or ``optax.adamw``."""
    if name == "optax.adamw":
        return optax.adamw(RATE, weight_decay=DECAY)
    entry = optkit.catalogue.get(name)
    return entry.factory(**{"learning_rate": RATE, **entry.example})


def bytes_moved(name: str, shapes: Any) -> float:
    """Returns the bytes a parameter that one step has to read and write."""
    state = jax.eval_shape(transformation(name).init, shapes)
    each = optkit.tree.tree_bytes(state) / _size(shapes)
    return 12.0 + 2.0 * each + NEEDS.get(name, Needs()).again


def temporary_bytes(name: str, shapes: Any, options: Any = None) -> float:
    """Returns the bytes a parameter that the compiled step needs beside arguments and results."""
    tx = transformation(name)
    lowered = common.make_step(tx).lower(*common.abstract_arguments(tx, shapes))
    compiled = lowered.compile(compiler_options=options)
    return compiled.memory_analysis().temp_size_in_bytes / _size(shapes)


def needed_bytes(name: str, shapes: Any) -> float:
    """Returns what they may be."""
    largest = max(leaf.size for leaf in jax.tree.leaves(shapes))
    needs = NEEDS.get(name, Needs())
    return needs.tree + needs.leaf * largest / _size(shapes) + FREE


def few_leaves(width: int = 512) -> Any:
    """Returns a tree that compiles quickly: leaves of different shapes, none of them small."""
    shapes = common.gpt_like(width, 1, 4 * width, width)
    block = shapes["blocks"]["0"]
    return {"embed": shapes["embed"], "mlp": block["mlp"], "norm_1": block["norm_1"]}


def _size(shapes: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


class Drawing:
    """Draws standard normal numbers for a tree, as fast as the noise of the recipes is drawn."""

    def __init__(self, shapes: Any) -> None:
        tx = optkit.langevin_noise(optax.identity(), 1.0)
        zeros = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), shapes)
        self.state = tx.init(zeros)
        self.draw = jax.jit(tx.update, donate_argnums=0)
        self.updates = zeros

    def __call__(self) -> Any:
        """Draws once."""
        self.updates, self.state = self.draw(self.updates, self.state)
        return self.updates


def measure(name: str, quick: bool, rounds: int, clock: str) -> dict[str, Any]:
    """Returns all numbers of one recipe."""
    shapes = common.gpt_like(32, 1, 64, 16) if quick else common.gpt_like()
    grads = common.random_like(shapes, seed=2)
    runs: dict[str, Any] = {
        side: Contestant(transformation(side), shapes, grads) for side in ("optax.adamw", name)
    }
    if name in NOISY:
        runs["noise"] = Drawing(shapes)
    seconds = {side: min(times) for side, times in common.interleave(runs, rounds, clock).items()}
    ratio = bytes_moved(name, shapes) / ADAMW_BYTES
    noise = seconds.get("noise", 0.0) / seconds["optax.adamw"]
    temporary = runs[name].compiled.memory_analysis().temp_size_in_bytes / _size(shapes)
    needs = NEEDS.get(name, Needs())
    return {
        "name": name,
        "milliseconds": 1e3 * seconds[name],
        "bytes_ratio": ratio,
        "time_ratio": seconds[name] / seconds["optax.adamw"],
        "noise_ratio": noise,
        "allowed": SLACK * ratio + noise,
        "temporary": temporary,
        **dataclasses.asdict(needs),
        "needed": needs.tree + needs.leaf + FREE,
    }


def as_text(rows: list[dict[str, Any]]) -> str:
    """Returns the table with a verdict a line."""
    cells = [
        (
            row["name"],
            f"{row['milliseconds']:.0f}",
            f"{row['bytes_ratio']:.2f}",
            f"{row['noise_ratio']:.2f}" if row["noise_ratio"] else "",
            f"{row['time_ratio']:.2f}",
            f"{row['allowed']:.2f}",
            "met" if row["time_ratio"] <= row["allowed"] else "MISSED",
            f"{row['temporary']:.1f}",
            "met" if row["temporary"] <= row["needed"] else "MISSED",
            row["why"],
        )
        for row in rows
    ]
    head = ("recipe", "ms", "bytes", "noise", "time", "allowed", "step", "temporary", "memory")
    return common.table((*head, "needed for"), cells)


def main(arguments: list[str] | None = None) -> None:
    """Measures the recipes one after another and prints the table."""
    parser = common.parser("elementwise_recipes", __doc__)
    parser.add_argument("name", nargs="*", help="default: every recipe without matrix work")
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args(arguments)
    rounds = 1 if args.quick else args.rounds
    rows = [measure(name, args.quick, rounds, args.clock) for name in args.name or recipes()]
    common.report(rows, as_text(rows), as_json=args.json)


if __name__ == "__main__":
    main()
