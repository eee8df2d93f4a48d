"""Each test takes a method of the catalogue; tests of one method run together."""

import pytest

from tests.conformance import methods


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
