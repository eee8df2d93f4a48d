"""What there is to document: the modules and public names of the package."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "optkit"


def module_names() -> list[str]:
    """Names of all modules, read off the files so that collecting the tests imports none."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] == "__main__":
            continue  # runs the command line when imported
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def package_names() -> list[str]:
    """Names of optkit and its subpackages."""
    return [name for name in module_names() if (ROOT / name.replace(".", "/")).is_dir()]


class Symbol(NamedTuple):
    """A public name, where it is exported, and what it stands for."""

    module: str
    name: str
    value: Any

    @property
    def label(self) -> str:
        """Its full name."""
        return f"{self.module}.{self.name}"


def public_symbols(name: str) -> list[Symbol]:
    """Returns what a module exports."""
    module = importlib.import_module(name)
    return [Symbol(name, item, getattr(module, item)) for item in exported(module)]


def exported(module: ModuleType) -> list[str]:
    """Returns the module's ``__all__`` without dunder names."""
    return [item for item in module.__all__ if not item.startswith("__")]


def is_function(value: Any) -> bool:
    """Whether a value is a function, also behind ``jax.jit`` or another wrapper."""
    return inspect.isroutine(inspect.unwrap(value)) if callable(value) else False
