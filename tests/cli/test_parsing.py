"""Words and configuration files become values and names, or errors that say what is wrong."""

import json

import pytest

from optkit.cli.errors import CommandError
from optkit.cli.parsing import (
    load_config,
    parse_assignments,
    parse_method,
    parse_seeds,
    parse_value,
)
from optkit.cli.tasks import make_task


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.02", 0.02),
        ("1e-3", 1e-3),
        ("3", 3),
        ("-1.", -1.0),
        ("true", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("ema", "ema"),
        ('"ema"', "ema"),
        ("'1'", "1"),
        ("[0.9, 0.99]", [0.9, 0.99]),
        ("(1, 2)", (1, 2)),
        ('{"a": 1}', {"a": 1}),
        ("a/b c", "a/b c"),
        ("", ""),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_values_are_json_or_python_literals_or_text(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_assignments_keep_their_order_and_take_dashes():
    assert parse_assignments(["weight-decay=0.1", "b1=a=b"], flag="-p") == {
        "weight_decay": 0.1,
        "b1": "a=b",
    }


@pytest.mark.parametrize("word", ["learning_rate", "=1", "1x=2", ""])
def test_a_word_that_is_no_assignment_is_refused(word):
    with pytest.raises(CommandError, match="-p takes name=value"):
        parse_assignments([word], flag="-p")


def test_a_name_given_twice_is_refused():
    with pytest.raises(CommandError, match="'b1' is given twice"):
        parse_assignments(["b1=1", "b1=2"], flag="-p")


def test_commas_in_brackets_and_quotes_do_not_split_a_method():
    spec = parse_method("muon:coefficients=[[1,2,3],[4,5,6]],scale='a,b',steps=2")
    assert spec.name == "muon"
    assert spec.hyperparameters == {
        "coefficients": [[1, 2, 3], [4, 5, 6]],
        "scale": "a,b",
        "steps": 2,
    }
    assert parse_method("lion").hyperparameters == {}
    assert parse_method("lion:").label == "lion"


@pytest.mark.parametrize("text", ["", "a", "0,0", "-1", "1.5", ","])
def test_seeds_are_different_integers(text):
    with pytest.raises(CommandError, match="different non-negative integers"):
        parse_seeds(text)


def test_toml_and_json_configurations_say_the_same(tmp_path):
    table = {"task": "digits", "seconds": 2.5, "seeds": [0, 1], "task_options": {"batch": 8}}
    methods = {"adamw": {"learning_rate": 0.01}, "lion:b1=0.95": {"b2": 0.98}}
    as_json, as_toml = tmp_path / "c.json", tmp_path / "c.toml"
    as_json.write_text(json.dumps({**table, "methods": methods}))
    as_toml.write_text(
        'task = "digits"\nseconds = 2.5\nseeds = [0, 1]\ntask_options = {batch = 8}\n'
        '[methods.adamw]\nlearning_rate = 0.01\n[methods."lion:b1=0.95"]\nb2 = 0.98\n'
    )
    config = load_config(as_toml)
    assert config == load_config(as_json)
    assert config["methods"]["lion:b1=0.95"].hyperparameters == {"b1": 0.95, "b2": 0.98}
    assert config["task_options"] == {"batch": 8}


def test_methods_of_a_configuration_may_be_a_list(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"methods": ["adamw:learning_rate=0.1", "lion"]}')
    assert list(load_config(path)["methods"]) == ["adamw:learning_rate=0.1", "lion"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"step": 3}', r"unknown key 'step' \(did you mean 'steps'"),
        ('{"steps": 0}', "steps must be an integer above 0, got 0"),
        ('{"steps": true}', "steps must be an integer above 0, got True"),
        ('{"seed": -1}', "seed must be an integer of at least 0"),
        ('{"methods": {"adamw": 3}}', "methods holds tables"),
        ("[1]", "a configuration is a table"),
        ("{", "cannot read the configuration"),
    ],
)
def test_a_wrong_configuration_is_named(tmp_path, text, message):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(CommandError, match=message):
        load_config(path)


def test_a_configuration_that_is_missing_or_of_another_kind(tmp_path):
    with pytest.raises(CommandError, match="cannot read"):
        load_config(tmp_path / "none.toml")
    with pytest.raises(CommandError, match=r"a \.toml or a \.json"):
        load_config(tmp_path / "c.yaml")


def test_unknown_tasks_and_options_come_with_suggestions():
    with pytest.raises(CommandError, match=r"unknown task 'digit' \(did you mean 'digits'"):
        make_task("digit", {})
    with pytest.raises(CommandError, match=r"batches.*batch"):
        make_task("regression", {"batches": 3})
