"""Each test takes a method of the catalogue; tests of one method run together."""

import re
from collections.abc import Iterator

import jax
import pytest

from tests.conformance import methods


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests of recipes, and of wrappers, to these."""
    parts: dict[bool, list[pytest.Item]] = {False: [], True: []}
    for item in items:
        parts[_fits(item)].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


def _fits(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or "method" not in getattr(item, "fixturenames", ()):
        return True
    kinds = {"recipe": methods.RECIPES, "wrapper": methods.WRAPPERS}
    name = item.callspec.params["method"]
    return all(name in of for kind, of in kinds.items() if kind in item.fixturenames)


@pytest.fixture(autouse=True)
def _kept_out_of_the_cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """LIFT's step on a mesh is compiled each time: out of the cache, emulated devices run its
    exchanges in different orders, and wait for each other until XLA ends the process."""
    if "lift" not in re.split(r"[\[\]-]", request.node.name):
        yield
        return
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, 1e9)
    yield
    jax.config.update(option, before)


@pytest.fixture(scope="session", params=methods.ALL)
def method(request: pytest.FixtureRequest) -> methods.Method:
    """Every method; wrappers go around AdamW."""
    return methods.method(request.param)


# The same parameter, so that pytest keeps all tests of a method together, and they share its runs.
@pytest.fixture(scope="session")
def recipe(method: methods.Method) -> methods.Method:
    """Every whole optimizer."""
    return method


@pytest.fixture(scope="session")
def wrapper(method: methods.Method) -> methods.Method:
    """Every wrapper; the test says around what."""
    return method
