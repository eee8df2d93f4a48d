"""The examples in the docstrings run and print what they say."""

import doctest
import importlib

import pytest

from tests.docs.modules import module_names

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.sweep
@pytest.mark.parametrize("name", module_names())
def test_examples_of_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for case in doctest.DocTestFinder().find(module):
        runner.run(case, out=report.append)
    assert not runner.failures, "".join(report)


def test_modules_are_found() -> None:
    names = module_names()
    assert "optkit" in names
    assert not any(name.endswith(("__main__", "__init__")) for name in names)
