"""Each test takes a method of the catalogue; tests of one method run together."""

import re
from collections.abc import Iterator

import jax
import pytest

from tests.conformance import methods


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves methods whose turn it is not out of the contracts marked ``sweep``."""
    parts: dict[bool, list[pytest.Item]] = {False: [], True: []}
    for item in items:
        parts[_waits(item)].append(item)
    if parts[True]:
        config.hook.pytest_deselected(items=parts[True])
        items[:] = parts[False]


def _waits(item: pytest.Item) -> bool:
    if item.get_closest_marker("sweep") is None:
        return False
    assert isinstance(item, pytest.Function)
    given = item.callspec.params
    return not methods.has_its_turn(given["method"] if "method" in given else given["recipe"])


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


@pytest.fixture(scope="session", params=methods.RECIPES)
def recipe(request: pytest.FixtureRequest) -> methods.Method:
    """Every whole optimizer."""
    return methods.method(request.param)


@pytest.fixture(scope="session", params=methods.WRAPPERS)
def wrapper(request: pytest.FixtureRequest) -> methods.Method:
    """Every wrapper; the test says around what."""
    return methods.method(request.param)
