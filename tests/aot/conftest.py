"""A target that any machine has the compiler of: emulated CPU devices."""

import dataclasses
from collections.abc import Iterator

import jax
import pytest

from optkit.aot import CHIPS, targets


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Returns the name of a topology of 8 CPU devices; ``2xcpu:2x2`` is two slices of 4."""
    chip = dataclasses.replace(CHIPS["v5e"], name="cpu", platform="cpu", flops=1e12)
    monkeypatch.setitem(CHIPS, "cpu", chip)
    monkeypatch.setattr(
        targets,
        "_devices",
        lambda chip, shape, slices: tuple(jax.devices()[: slices * shape[0] * shape[1]]),
    )
    yield "cpu:2x4"
