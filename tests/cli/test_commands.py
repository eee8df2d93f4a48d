"""The commands as a user meets them: their output, their errors and their exit codes."""

import dataclasses
import importlib.util
import io
import re
import sys

import pytest
from rich.console import Console

import optkit
from optkit._compositions import COMPOSITIONS
from optkit.catalogue import LeafBytes, StateBytes
from optkit.cli.docs import arguments, body, first_sentence, section, wrapped
from optkit.cli.progress import RaceProgress, TrainProgress
from optkit.cli.racing import Run
from optkit.cli.settings import TrainSettings
from optkit.cli.tables import method_table, state_text


def test_list_filters_and_finds_parts_of_names(command):
    everything = command("list")
    assert everything.code == 0
    assert all(entry.name in everything.out for entry in optkit.catalogue.entries())
    assert "adamw" not in command("list", "lion").out
    cautious = command("list", "cautious_*", "--family", "matrix").out
    assert "cautious_muon" in cautious
    assert "cautious_lion" not in cautious
    assert "adamw" not in command("list", "--kind", "part").out


def test_list_groups_by_family_and_puts_recipes_first(command):
    lines = command("list").out.splitlines()
    families, family = {}, ""
    for line in lines[1:]:
        if line.startswith("  "):
            families[family].append(line.split()[0])
        elif len(line.split()) == 1:
            family = line.strip()
            families[family] = []
    catalogue = optkit.catalogue.entries()
    kinds = ("recipe", "wrapper", "part", "strategy", "gradient")
    kinds += ("aggregate", "federated", "outer", "solver")
    assert set(families) == {entry.family for entry in catalogue}
    for family, names in families.items():
        own = [entry for entry in catalogue if entry.family == family]
        order = sorted(own, key=lambda entry: (kinds.index(entry.kind), entry.name))
        assert names == [entry.name for entry in order]
    with_recipes = {entry.family for entry in catalogue if entry.kind == "recipe"}
    assert set(list(families)[: len(with_recipes)]) == with_recipes


@pytest.mark.parametrize("width", [80, 100, 160])
def test_list_has_one_line_a_method_at_any_width(command, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    entries = optkit.catalogue.entries()
    lines = command("list").out.splitlines()
    assert len(lines) == 1 + len(entries) + len({entry.family for entry in entries}) + 4
    assert all(len(line) <= width for line in lines)
    for entry in entries:
        assert any(line.startswith(f"  {entry.name} ") for line in lines)


def test_state_bytes_say_what_comes_on_top():
    entry = dataclasses.replace(
        optkit.catalogue.get("muon"),
        state_bytes={"matrix": StateBytes(4, lambda m, n: 4 * m, "4 a row"), "conv": 4, "*": 8},
    )
    assert state_text(entry) == "4 + 4 a row on matrix; 4 on conv; 8 elsewhere"
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(method_table([entry], width=120))
    assert "4–8*" in console.export_text()


def test_state_bytes_below_those_of_the_inner_one_have_a_true_minus():
    def shown(kind, sizes):
        muon = optkit.catalogue.get("muon")
        entry = dataclasses.replace(muon, kind=kind, state_bytes=sizes)
        console = Console(width=120, record=True, file=io.StringIO())
        console.print(method_table([entry], width=120))
        return state_text(entry), console.export_text()

    some = StateBytes(0.0, lambda m, n: 4 * n * n, "4 fan_in^2 a matrix")
    text, table = shown("wrapper", {"*": 0.0, "matrix": some})
    assert text == "4 fan_in^2 a matrix on matrix; 0 elsewhere"
    assert " +0* " in table
    text, table = shown("wrapper", {"*": LeafBytes(-5.96875, lambda size: 0.0, "over Adam")})
    assert text == "−5.96875, over Adam"
    assert " −5.97* " in table and "+−" not in table
    assert "−: so much less than Adam's" in table
    assert " −8 to 0 " in shown("wrapper", {"*": 0.0, "matrix": -8.0})[1]
    assert " 4–8 " in shown("recipe", {"*": 8.0, "matrix": 4.0})[1]


def test_arguments_of_a_docstring_come_in_one_line_each():
    def function(a, *, b):
        """Does nothing.

        Args:
          a: first, as ``x``
            goes on. And on.
          b: second (e.g. 0.9).

        Returns:
          None.
        """

    assert arguments(function) == {
        "a": "first, as `x` goes on. And on.",
        "b": "second (e.g. 0.9).",
    }
    assert section(function, "Returns") == "None."
    assert section(function, "Raises") == ""
    assert arguments(len) == {}
    sentences = [first_sentence(text) for text in arguments(function).values()]
    assert sentences == ["first, as `x` goes on", "second (e.g. 0.9)"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list", "moun"], "no method matches 'moun' here (did you mean 'muon'?)"),
        (["list", "--family", "matrx"], "unknown family 'matrx' (did you mean 'matrix'?)"),
        (["list", "--kind", "recipes"], "known: aggregate, federated, gradient, outer, part, "),
        (["show", "moun"], "unknown method 'moun' (did you mean 'muon'?)"),
        (["plan", "fedavg"], "optkit.server_step(optkit.aggregate.mean(), optax.sgd(1.0))"),
        (["plan", "muon", "--task", "regresion"], "did you mean 'regression'?"),
        (["plan", "muon", "--task", "digits", "--task-option", "widht=3"], "widht"),
        (["plan", "muon", "-p", "stepz=3"], "allowed: learning_rate"),
        (["plan", "muon", "-p", "steps=many"], "steps expects an integer or None, got 'many'"),
        (["plan", "muon", "-p", "steps"], "-p takes name=value, got 'steps'"),
        (["plan", "adamw", "--task", "regression", "-p", "state_dtype=float33"], "adamw: "),
        (["train", "orthogonalize", "--task", "regression"], "not a complete optimizer"),
        (["race", "--task", "regression"], "name the methods to race"),
        (["race", "lion", "lion", "--task", "regression"], "'lion' is entered twice"),
        (["race", "lion:b9=1", "--task", "regression"], "lion has no hyperparameter 'b9'"),
        (["race", "lion", "--task", "regression", "--seeds", "1,1"], "different non-negative"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = command(*words)
    assert finished.code == 2
    assert finished.err.startswith("error: ")
    assert finished.err.count("\n") == 1
    assert message in finished.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "hint"), [(["trian"], "train"), (["train", "lion", "--stpes", "3"], "--steps")]
)
def test_unknown_commands_and_flags_are_suggested(command, words, hint):
    finished = command(*words)
    assert finished.code == 2
    assert hint in finished.err


def test_show_names_chain_defaults_and_paper(command):
    entry = optkit.catalogue.get("lion")
    out = command("show", "lion").out
    assert entry.chain in out
    assert "arXiv:2302.06675" in out
    assert re.search(r"^b1 +0\.9 +\w+", out, re.MULTILINE)
    assert all(name in out for name in entry.hyperparameters())


@pytest.mark.parametrize("entry", optkit.catalogue.entries(), ids=lambda entry: entry.name)
def test_show_knows_every_method(command, entry):
    finished = command("show", entry.name)
    assert finished.code == 0
    assert "0x" not in finished.out
    table = finished.out.split("\nhyperparameter")[1]
    for name in entry.hyperparameters():
        # Name, default, and a meaning that comes from the docstring.
        assert re.search(rf"^{name} +\S.*? {{2,}}(?!–)\S", table, re.MULTILINE), name


def test_show_has_recursion_cost_and_evidence(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = command("show", "muon").out
    assert "  1. `m <- b1*m + (1-b1)*g`; `u = (1-b1)*g + b1*m` (Nesterov);\n" in out
    flat = " ".join(out.split())
    assert "five Newton-Schulz steps of" not in flat
    assert "Extra matrix work of a step" in flat and "Evidence: 1.35 times fewer steps" in flat
    assert "learning_rate: step of the matrices" not in flat  # a section of its own has these
    assert flat.index("Evidence") < flat.index("hyperparameter default")
    assert "``" not in out and all(len(line) <= 80 for line in out.splitlines())


def test_prose_is_filled_and_code_and_tables_are_left_alone():
    def function():
        """Does nothing.

        First ``x``
        and on.

        1. one is long
           enough;
        2. two::

          code  ``as it is``

        ====  ===
        ``a``  b
        ====  ===

        Args:
          none: at all.
        """

    told = wrapped(body(function), 12)
    assert told.split("\n\n") == [
        "First `x`\nand on.",
        "1. one is\n   long\n   enough;\n2. two:",
        "  code  ``as it is``",
        "====  ===\n`a`    b\n====  ===",
    ]
    assert body(lambda: None) == ""


@pytest.mark.parametrize("name", ["fedavg", "dp_sgd"])
def test_show_tells_what_a_name_is_composed_of(command, name):
    finished = command("show", name)
    assert (finished.code, finished.err) == (0, "")
    assert finished.out == f"{name} is not one part: {COMPOSITIONS[name]}\n"


def test_plan_prints_the_plan_of_the_tasks_model(command):
    finished = command("plan", "muon", "--task", "regression", "-p", "b1=0.9")
    assert finished.code == 0
    assert "first/kernel" in finished.out
    assert "32x24" in finished.out


def test_version_and_help(command):
    assert command("--version").out.strip() == optkit.__version__
    out = command("--help").out
    assert all(name in out for name in ("list", "show", "plan", "train", "race"))


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_a_missing_extra_says_how_to_install_it(command, monkeypatch, missing):
    find = importlib.util.find_spec
    hide = lambda name, *rest: None if name == missing else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    finished = command("list")
    assert finished.code == 1
    assert finished.err == (f'error: the command line needs {missing}: pip install "optkit[cli]"\n')


def test_a_race_without_matplotlib_stops_before_it_trains(command, monkeypatch):
    find = importlib.util.find_spec
    hide = lambda name, *rest: None if name == "matplotlib" else find(name, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hide)
    finished = command("race", "lion", "--task", "regression")
    assert finished.code == 1
    assert 'a race report needs matplotlib: pip install "optkit[cli]"' in finished.err


def test_a_task_without_its_data_package_says_so(command, monkeypatch, tmp_path):
    from optkit.tasks import digits_data

    digits_data.load.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.chdir(tmp_path)
    finished = command("train", "lion", "--task", "digits", "--steps", 1)
    assert finished.code == 1
    assert "optkit[cli]" in finished.err
    assert finished.err.count("\n") == 1


@pytest.mark.slow
def test_it_runs_as_a_module(launch):
    process = launch("-m", "optkit", "list", "signum")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "signum" in out


def test_bars_follow_the_runs_on_a_terminal():
    console = Console(force_terminal=True, width=120, record=True, highlight=False)
    run = Run("lion", 0, 0.1, 8, 5, 0.5, "running", losses=[(5, 0.5, 1.25)])
    run.held_out.append({"step": 5, "seconds": 0.5, "error": 0.5})
    with RaceProgress(console, labels=["lion"], metric="error", steps=10, seconds=None) as bars:
        bars.compiling("lion")
        bars.entered(run)
        bars.moved(run)
    text = console.export_text()
    assert "lion seed 0" in text
    assert "train loss 1.2500  held-out error 0.5000" in text
    settings = TrainSettings(
        method="lion", hyperparameters={}, task="toy", task_options={}, seed=0, steps=10,
        log_every=1, eval_every=5, checkpoint_every=5,
    )  # fmt: skip
    with TrainProgress(console) as bar:
        bar.start(settings, 0)
        bar.row({"step": 5, "loss": 2.5, "held_out": {"error": 0.25}})
    text = console.export_text()
    assert "lion on toy" in text
    assert "held-out error 0.2500" in text
