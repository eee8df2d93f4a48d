"""Every public name is described in the house form."""

import importlib
import inspect
import re

import pytest

from tests.docs.modules import Symbol, is_function, package_names, public_symbols

SECTION = r"^\s*{}:\s*$"


def has_section(text: str, title: str) -> bool:
    """Whether a docstring has a section of this title."""
    return re.search(SECTION.format(title), text, re.MULTILINE) is not None


def documented_arguments(text: str) -> set[str]:
    """Returns the names described in the section Args; ``b1, b2: ...`` describes two."""
    section = re.split(SECTION.format("Args"), text, maxsplit=1, flags=re.MULTILINE)[-1]
    names: set[str] = set()
    for line in section.splitlines():
        if re.match(r"^\s*[A-Z]\w+:\s*$", line):
            break  # the next section
        if found := re.match(r"^\s*([*\w, ]+?)(?: \(.*?\))?:(?:\s|$)", line):
            names.update(part.strip().lstrip("*") for part in found[1].split(","))
    return names


def summary_faults(text: str | None) -> list[str]:
    """Returns what is wrong with the first paragraph of a docstring."""
    if not text or not text.strip():
        return ["has no docstring"]
    lines = inspect.cleandoc(text).splitlines()
    faults = []
    if not lines[0].endswith("."):
        faults.append(f"the summary has to be one line that ends in a period, not {lines[0]!r}")
    if len(lines) > 1 and lines[1]:
        faults.append("the summary has to be followed by an empty line")
    return faults


def function_faults(symbol: Symbol) -> list[str]:
    """Returns what is wrong with the docstring of a function."""
    function = inspect.unwrap(symbol.value)
    text = inspect.cleandoc(function.__doc__ or "")
    faults = summary_faults(function.__doc__)
    signature = inspect.signature(function)
    if signature.parameters and not has_section(text, "Args"):
        faults.append("has no section 'Args:'")
    elif missing := signature.parameters.keys() - documented_arguments(text):
        faults.append(f"does not describe {', '.join(sorted(missing))}")
    if signature.return_annotation is not None and not has_section(text, "Returns"):
        faults.append("has no section 'Returns:'")
    if symbol.module == "optkit" and ">>>" not in text:
        faults.append("has no example (>>>)")
    return faults


def symbol_faults(symbol: Symbol) -> list[str]:
    """Returns what is wrong with the docstring of a public name; constants need none."""
    value = symbol.value
    if is_function(value):
        return function_faults(symbol)
    if inspect.isclass(value):
        # A dataclass or NamedTuple without a docstring gets its signature for one: no period.
        return summary_faults(vars(value).get("__doc__"))
    return summary_faults(value.__doc__) if inspect.ismodule(value) else []


@pytest.mark.parametrize("name", package_names())
def test_package_exports_described_names(name: str) -> None:
    module = importlib.import_module(name)
    assert not summary_faults(module.__doc__), name
    assert hasattr(module, "__all__"), f"{name} has no __all__: list its public names"
    missing = [item for item in module.__all__ if not hasattr(module, item)]
    assert not missing, f"{name}.__all__ lists names that do not exist: {missing}"
    faults = [f"{s.label}: {fault}" for s in public_symbols(name) for fault in symbol_faults(s)]
    assert not faults, "\n".join(faults)


def _good(x: int, *, b1: float, b2: float) -> int:
    """Adds nothing.

    Args:
      x: anything.
      b1, b2: numbers: two.

    Returns:
      x

    Example:
      >>> 1
      1
    """
    return x


def _no_period(x: int) -> None:
    """Adds nothing"""


def test_the_check_tells_good_from_bad() -> None:
    assert symbol_faults(Symbol("optkit", "_good", _good)) == []
    faults = symbol_faults(Symbol("optkit", "_no_period", _no_period))
    assert [fault.split()[0:3] for fault in faults] == [
        ["the", "summary", "has"],
        ["has", "no", "section"],
        ["has", "no", "example"],
    ]
    assert symbol_faults(Symbol("optkit", "type", type("T", (Symbol,), {}))) == ["has no docstring"]
