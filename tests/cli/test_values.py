"""Hyperparameters are checked against the factory's signature."""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pytest

import optkit
from optkit.cli.errors import CommandError
from optkit.cli.hyperparameters import bind, find_entry, find_recipe, resolved
from optkit.cli.values import convert, expectation, plain

Rate = float | jax.Array | Callable[[jax.Array], jax.Array]


@pytest.mark.parametrize(
    ("value", "annotation", "converted"),
    [
        (1, float, 1.0),
        (1, Rate, 1.0),
        (1, int | float, 1),
        (1.5, int | float, 1.5),
        (True, bool, True),
        (None, float | None, None),
        ("ema", Literal["ema", "sum"], "ema"),
        ("x", str | Sequence[float], "x"),
        ([[1, 2], [3]], str | Sequence[Sequence[float]], ((1, 2), (3,))),
        ([1], list[int], [1]),
        ({"a": 1}, dict[str, int] | None, {"a": 1}),
        ("bfloat16", np.dtype, np.dtype("bfloat16")),
        (2, Annotated[float, "unit"], 2.0),
        ([1], Any, [1]),
    ],
)
def test_values_become_the_annotated_type(value, annotation, converted):
    found = convert("m", "x", value, annotation)
    assert found == converted
    assert type(found) is type(converted)


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        ("big", Rate, "expects a number, got 'big' (str)"),
        (True, Rate, "expects a number, got True (bool)"),
        (1, bool, "expects true or false, got 1 (int)"),
        (1.5, int, "expects an integer, got 1.5 (float)"),
        (None, float, "expects a number, got None"),
        (3, str | None, "expects text or None, got 3"),
        ("mean", Literal["ema", "sum"], "expects one of 'ema', 'sum', got 'mean'"),
        ("f", Callable[[int], int], "a Python object, which a command line cannot give"),
        ("float33", np.dtype, "expects a dtype name"),
    ],
)
def test_a_wrong_type_says_what_is_expected(value, annotation, expected):
    with pytest.raises(CommandError) as error:
        convert("m", "x", value, annotation)
    assert str(error.value).startswith("m: x ")
    assert expected in str(error.value)


def test_an_unknown_hyperparameter_lists_the_allowed_ones():
    entry = optkit.catalogue.get("adamw")
    with pytest.raises(CommandError) as error:
        bind(entry, {"learnig_rate": 0.1})
    text = str(error.value)
    assert "adamw has no hyperparameter 'learnig_rate' (did you mean 'learning_rate'?)" in text
    assert all(name in text for name in entry.hyperparameters())


def test_unknown_methods_and_parts_are_refused():
    with pytest.raises(CommandError, match=r"unknown method 'moun' \(did you mean 'muon'"):
        find_entry("moun")
    with pytest.raises(CommandError, match="orthogonalize is a part, not a complete optimizer"):
        find_recipe("orthogonalize")


@pytest.mark.parametrize("entry", optkit.catalogue.entries(kind="recipe"), ids=lambda e: e.name)
def test_every_recipe_takes_a_rate_as_text_and_is_recorded_stably(entry):
    record = resolved(entry, {"learning_rate": 1})
    assert record["learning_rate"] == 1.0
    assert set(record) == set(entry.hyperparameters())
    assert record == plain(record) == resolved(entry, {"learning_rate": 1.0})
    assert "0x" not in str(record)
    hints = entry.hyperparameters()["learning_rate"].annotation
    # Without a rate Adafactor has one of its own.
    assert expectation(hints) == "a number" + " or None" * entry.name.endswith("adafactor")
