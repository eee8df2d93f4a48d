"""Runs the experiments: ``python -m benchmarks.claims [NAME ...] [--quick]``."""

import argparse
import importlib
import pkgutil
from pathlib import Path

from benchmarks import claims
from benchmarks.claims import engine

RESULTS = Path(__file__).resolve().parents[1] / "results" / "claims"


def names() -> list[str]:
    """Returns the experiments: the modules of this package that define one."""
    helpers = {"engine", "lm", "streams", "__main__"}
    return [m.name for m in pkgutil.iter_modules(claims.__path__) if m.name not in helpers]


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=claims.__doc__)
    parser.add_argument("name", nargs="*", choices=[*names(), []], help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="number of reported seeds")
    parser.add_argument("--quick", action="store_true", help="tiny sizes; stores nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the tables")
    args = parser.parse_args(arguments)
    setting = engine.Setting(tuple(range(args.seeds)), args.quick)
    for name in args.name or names():
        module = importlib.import_module(f"benchmarks.claims.{name}")
        print(engine.run(name, module.experiment, setting, args.output), flush=True)


if __name__ == "__main__":
    main()
