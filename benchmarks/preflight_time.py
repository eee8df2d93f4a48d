"""How long a preflight takes: ``python -m benchmarks.preflight_time``.

Needs ``pip install 'optkit[tpu]'`` and no TPU. Each row is the command ``optkit preflight`` in a
process of its own, from its start to its last line, nothing kept from an earlier one: imports,
tracing and the TPU's compiler. Seconds are the best of some rounds, wall time and, since the
compiler uses several cores, the processor's.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import common

TARGET = 60.0
METHODS = ("adamw", "muon")


def command(method: str, model: str, topology: str) -> list[str]:
    """Returns what a user would call."""
    asked = ["--model", model, "--method", method, "--topology", topology]
    return [sys.executable, "-m", "optkit", "preflight", *asked]


def seconds_of(words: Sequence[str]) -> tuple[float, float]:
    """Returns the wall and the processor's seconds of a process; raises if it fails."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(words, env=environment, check=False, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """Runs the measurement."""
    parser = common.parser("preflight_time", __doc__)
    parser.add_argument("method", nargs="*", help=f"default: {' '.join(METHODS)}")
    parser.add_argument("--model", default="gpt2-medium")
    parser.add_argument("--topology", default="v5e:4x4")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for method in args.method or METHODS:
        words = command(method, args.model, args.topology)
        times = [seconds_of(words) for _ in range(1 if args.quick else args.rounds)]
        wall, cpu = (min(column) for column in zip(*times, strict=True))
        rows.append({"method": method, "seconds": wall, "cpu": cpu})
    lines = [[row["method"], f"{row['seconds']:.1f}", f"{row['cpu']:.1f}"] for row in rows]
    text = common.table(("method", "seconds", "cpu"), lines)
    worst = max(row["seconds"] for row in rows)
    text += f"\n{args.model} on {args.topology}: {worst:.1f} s, "
    text += common.verdict(worst, TARGET, at_least=False)
    common.report(rows, text, as_json=args.json)


if __name__ == "__main__":
    main()
