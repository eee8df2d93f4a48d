"""Time, memory and bytes of low-bit states: ``python -m benchmarks.quantized_states``.

Time: a step of ``quantize_state(adamw)`` against ``adamw`` on the GPT-like tree of
``benchmarks.step_time`` (29.5 million parameters), in turns within one process; the ratio is that
of the best times. Memory: scratch that the compiled steps need, beside what the moments would take
in float32: with leaves decoded one after another it is a few leaves; also of a step of GPT-2
small's shapes, compiled and not run. Bytes: the states of models of the shapes of GPT-2 small and
Llama-7B under ``jax.eval_shape``, against the formulas that they should equal (all leaves stored,
and with leaves below 4096 entries in float32).

On CPUs the order of leaves holds on a single device only: run this without emulated devices.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

import optkit
from benchmarks import common
from benchmarks.memory_shapes import gpt2_small, llama_7b
from benchmarks.step_time import Contestant

RATE = 1e-3
TARGET_TIME, TARGET_BYTES = 2.5, 2.9
NAMES = ("dynamic8", "fp8", "dynamic4", "bf16")
MOMENTS = 8  # bytes of Adam's in float32
FORMULAS: dict[str, Callable[[int], float]] = {
    "dynamic8": lambda n: 2 * n * (1 + 4 / 256),
    "fp8": lambda n: 2 * n * (1 + 4 / 256),
    "dynamic4": lambda n: n + 8 * n / 128,
    "bf16": lambda n: 4 * n,
}


def state_bytes(codec: Any, shapes: Any, min_size: int) -> int:
    """Returns the bytes of Adam's moments, the counter left out; allocates nothing."""
    tx = optkit.quantize_state(optax.scale_by_adam(), codec, min_size=min_size)
    plan = optkit.plan(tx, shapes)
    return plan.state_bytes - plan.shared_bytes


def wanted_bytes(name: str, shapes: Any, min_size: int) -> float:
    """Returns what the formula says."""
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    return sum(FORMULAS[name](n) if n >= min_size else MOMENTS * n for n in sizes)


def bytes_rows(names: tuple[str, ...], models: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns one row a codec, model and least size."""
    rows = []
    for model, shapes in models.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        for name in names:
            for least in (0, 4096):
                found = state_bytes(name, shapes, least)
                rows.append(
                    {
                        "model": model,
                        "codec": name,
                        "min_size": least,
                        "bytes": found,
                        "formula": wanted_bytes(name, shapes, least),
                        "smaller": MOMENTS * size / found,
                    }
                )
    return rows


def memory_rows(model: str, shapes: Any, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns what a compiled step needs, nothing run: one row a codec, ``adamw`` first."""
    makers = {"adamw": optkit.adamw(RATE)}
    makers |= {name: optkit.quantize_state(optkit.adamw(RATE), name) for name in names}
    rows = []
    for name, tx in makers.items():
        arguments = common.abstract_arguments(tx, shapes)
        compiled = common.make_step(tx).lower(*arguments).compile()
        rows.append({"name": f"{model}, {name}", **_needs(compiled, arguments[1], shapes)})
    return rows


def _needs(compiled: Any, state: Any, shapes: Any) -> dict[str, Any]:
    full = MOMENTS * sum(leaf.size for leaf in jax.tree.leaves(shapes))
    return {
        "peak_bytes": common.peak_bytes(compiled),
        "state_bytes": optkit.tree.tree_bytes(state),
        "scratch": compiled.memory_analysis().temp_size_in_bytes / full,
    }


def time_rows(names: tuple[str, ...], shapes: Any, rounds: int, clock: str) -> list[dict[str, Any]]:
    """Returns one row a codec, ``adamw`` in float32 first."""
    makers: dict[str, Callable[[], Any]] = {"adamw": lambda: optkit.adamw(RATE)}
    for name in names:
        makers[name] = lambda name=name: optkit.quantize_state(optkit.adamw(RATE), name)
    grads = common.random_like(shapes, seed=2)
    runs = {label: Contestant(make(), shapes, grads) for label, make in makers.items()}
    seconds = common.interleave(runs, rounds, clock)
    return [
        {
            "name": label,
            "milliseconds": 1e3 * min(seconds[label]),
            "ratio": min(seconds[label]) / min(seconds["adamw"]),
            **_needs(run.compiled, run.state, shapes),
        }
        for label, run in runs.items()
    ]


def _needed(row: dict[str, Any]) -> tuple[str, ...]:
    mib = (f"{row[key] / 2**20:.1f}" for key in ("peak_bytes", "state_bytes"))
    return (*mib, f"{row['scratch']:.2f}")


def _text(
    times: list[dict[str, Any]], needs: list[dict[str, Any]], sizes: list[dict[str, Any]]
) -> str:
    memory = ("peak MiB", "state MiB", "scratch/moments")
    first = common.table(
        ("adamw's moments in", "best ms", "ratio", *memory),
        [
            (row["name"], f"{row['milliseconds']:.1f}", f"{row['ratio']:.2f}", *_needed(row))
            for row in times
        ],
    )
    whole = common.table(("compiled", *memory), [(row["name"], *_needed(row)) for row in needs])
    second = common.table(
        ("model, codec", "stored from", "bytes", "formula", "smaller"),
        [
            (
                f"{row['model']}, {row['codec']}",
                str(row["min_size"]),
                f"{row['bytes']:,}",
                "equal" if row["bytes"] == row["formula"] else f"NOT {row['formula']:,}",
                f"{row['smaller']:.2f} x",
            )
            for row in sizes
        ],
    )
    return f"{first}\n\n{whole}\n\n{second}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurements and prints tables and verdicts."""
    parser = common.parser("quantized_states", __doc__)
    parser.add_argument("--repeats", type=int, default=15, help="rounds of the times")
    parser.add_argument("--only", action="append", choices=NAMES, help="codecs")
    args = parser.parse_args(arguments)
    names = tuple(args.only or NAMES)
    shapes = common.gpt_like(256, 1, 64, 16) if args.quick else common.gpt_like()
    models = {"GPT-2 small": gpt2_small(), "Llama-7B": llama_7b()}
    if args.quick:
        models = {"tiny": shapes}
    times = time_rows(names, shapes, 2 if args.quick else args.repeats, args.clock)
    needs = memory_rows(*next(iter(models.items())), names[:1])
    sizes = bytes_rows(names, models)
    lines = []
    if not args.quick and "dynamic8" in names:
        ratio = next(row["ratio"] for row in times if row["name"] == "dynamic8")
        lines.append(f"time {common.verdict(ratio, TARGET_TIME, at_least=False)}")
        share = min(row["smaller"] for row in sizes if row["codec"] == "dynamic8")
        lines.append(f"bytes {common.verdict(share, TARGET_BYTES, at_least=True)}")
    common.report(
        {"times": times, "memory": needs, "bytes": sizes},
        "\n".join([_text(times, needs, sizes), *lines]),
        as_json=args.json,
    )


if __name__ == "__main__":
    main()
