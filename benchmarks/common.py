"""What the measurements share: the model, fair timing, memory, tables."""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import optkit


def gpt_like(
    width: int = 512, layers: int = 8, vocabulary: int = 8192, context: int = 256
) -> dict[str, Any]:
    """Returns the shapes of a GPT-like model with a tied embedding.

    By default 67 leaves and 29.5 million parameters; names are those of Flax.
    """

    def kernel(*shape: int) -> dict[str, Any]:
        return {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}

    def scale() -> dict[str, Any]:
        return {"scale": jax.ShapeDtypeStruct((width,), jnp.float32)}

    def embedding(rows: int) -> dict[str, Any]:
        return {"embedding": jax.ShapeDtypeStruct((rows, width), jnp.float32)}

    def block() -> dict[str, Any]:
        return {
            "attention": {name: kernel(width, width) for name in ("query", "key", "value", "out")},
            "mlp": {"up": kernel(width, 4 * width), "down": kernel(4 * width, width)},
            "norm_1": scale(),
            "norm_2": scale(),
        }

    return {
        "embed": embedding(vocabulary),
        "position_embed": embedding(context),
        "blocks": {str(i): block() for i in range(layers)},
        "final_norm": scale(),
    }


def equal_leaves(count: int = 128, size: int = 32) -> dict[str, Any]:
    """Returns the shapes of many equal square kernels."""
    shape = jax.ShapeDtypeStruct((size, size), jnp.float32)
    return {f"layer_{i}": {"kernel": shape} for i in range(count)}


def random_like(shapes: Any, seed: int = 0, scale: float = 0.02) -> Any:
    """Returns normal arrays of the given shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(scale * rng.standard_normal(s.shape, np.float32), s.dtype), shapes
    )


def make_step(tx: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """Returns the jitted ``step(grads, state, params) -> (state, params)``, the latter two donated.

    Donated buffers are matched to outputs in order: any other order costs a copy of each.
    """

    def step(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params)
        return state, optax.apply_updates(params, updates)

    return jax.jit(step, donate_argnums=(1, 2))


def abstract_arguments(tx: optax.GradientTransformation, shapes: Any) -> tuple[Any, Any, Any]:
    """Returns shapes of gradients, state and parameters, to compile a step with."""
    return shapes, jax.eval_shape(lambda p: tx.init(p), shapes), shapes


def peak_bytes(compiled: Any) -> int:
    """Returns the bytes that a compiled program needs: arguments + outputs + scratch - reused."""
    memory = compiled.memory_analysis()
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes
    )


# Processor time, of all threads of this process, is what a busy machine disturbs least; but it
# does not see whether the threads ran side by side.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleave(
    runs: Mapping[Any, Callable[[], Any]], rounds: int, clock: str = "wall"
) -> dict[Any, list[float]]:
    """Returns seconds of each run in each round; a disturbance of the machine hits all alike.

    Every other round goes through the runs backwards. One untimed round comes first.
    """
    now = CLOCKS[clock]
    seconds: dict[Any, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        names = list(runs) if turn % 2 else list(runs)[::-1]
        for name in names:
            begin = now()
            jax.block_until_ready(runs[name]())
            if turn:
                seconds[name].append(now() - begin)
    return seconds


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How two runs of the same rounds compare: ``other / ours``, above 1 if ours is faster."""

    best: float  # of the best times
    median: float  # of the ratios within each round

    @classmethod
    def of(cls, ours: Sequence[float], other: Sequence[float]) -> "Ratio":
        """Compares two lists of seconds."""
        pairs = [b / a for a, b in zip(ours, other, strict=True)]
        return cls(min(other) / min(ours), statistics.median(pairs))


def against_plain(
    programs: Mapping[str, Callable[[], Any]], rounds: int, clock: str
) -> dict[str, Any]:
    """Returns the time of the program "plain", and the ratios of the others' to it."""
    seconds = interleave(programs, rounds, clock)
    plain = seconds.pop("plain")
    ratios = {run: dataclasses.asdict(Ratio.of(plain, times)) for run, times in seconds.items()}
    return {"milliseconds": 1e3 * min(plain), "ratios": ratios}


def run_cases(
    prog: str,
    doc: str | None,
    cases: Iterable[str],
    measure: Callable[[str, bool, int, str], Any],
    as_text: Callable[[list[Any]], str],
    arguments: list[str] | None,
) -> None:
    """Measures the cases that the command line names, one after another, and prints them."""
    command = parser(prog, doc)
    command.add_argument("case", nargs="*", help="default: all")
    command.add_argument("--rounds", type=int, default=15)
    args = command.parse_args(arguments)
    rounds = 1 if args.quick else args.rounds
    rows = [measure(name, args.quick, rounds, args.clock) for name in args.case or cases]
    report(rows, as_text(rows), as_json=args.json)


def fresh_process() -> None:
    """Forgets what has been traced and compiled, and keeps JAX from reading it from the disk."""
    jax.config.update("jax_enable_compilation_cache", False)
    jax.clear_caches()


def versions() -> dict[str, str]:
    """Returns what the numbers depend on."""
    names = ("jax", "jaxlib", "optax", "numpy")
    device = jax.devices()[0]
    return {
        "optkit": optkit.__version__,
        **{name: importlib.metadata.version(name) for name in names},
        "python": platform.python_version(),
        "device": f"{device.platform} ({device.device_kind})",
    }


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a text table; the first column is left-aligned, all others right-aligned."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], "-" * (sum(widths) + 2 * len(widths) - 2), *text[1:]])


def verdict(value: float, target: float, *, at_least: bool) -> str:
    """Says whether a target is met."""
    met = value >= target if at_least else value <= target
    sign = ">=" if at_least else "<="
    return f"target {sign} {target:g}: {'met' if met else 'MISSED'}"


def parser(module: str, text: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options that all measurements have."""
    out = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    out.add_argument("--quick", action="store_true", help="tiny shapes, to see that it runs")
    out.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a busy machine")
    out.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return out


def report(rows: Any, text: str, *, as_json: bool) -> None:
    """Prints a measurement as text, or as JSON with the versions."""
    print(json.dumps({"versions": versions(), "results": rows}, indent=1) if as_json else text)
