"""``optkit evolve``: a log, checkpoints and a report; a resumed run is the uninterrupted one."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit.tasks.population
from optkit.cli.errors import CommandError
from optkit.cli.evolution import EVOLUTION, EvolveRequest, evolve
from optkit.cli.evolution_report import evolution_panels, write_evolution_report
from optkit.cli.logs import read_log
from optkit.cli.settings import TrainRequest
from optkit.cli.training import Outcome, load_run, train
from optkit.evolution import population_apply
from optkit.tasks.population import PopulationTask, as_population

MEMBERS, GENERATIONS = 8, 3
EGGROLL = ["eggroll", "-p", "sigma=0.1"]
SMALL = {"hidden": 4, "layers": 1, "steps": 10}


def request(out, **changes):
    given = {
        "method": "eggroll",
        "hyperparameters": {"sigma": 0.5},
        "task": "digits",
        "task_options": {"width": 4, "batch": 64},
        "population": MEMBERS,
        "steps": GENERATIONS,
        "eval_every": 2,
        "checkpoint_every": 1,
        "out": out,
    }
    return EvolveRequest(**{**given, **changes})


def plain(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def bits(tree):
    keys = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    bare = jax.tree.map(lambda x: jax.random.key_data(x) if keys(x) else x, tree)
    return [(x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(bare)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, evolve(request(out))


@pytest.fixture
def counting(monkeypatch):
    """A task whose fitness is a concave function, in place of the one called regression."""

    def height(params):
        return -jnp.sum((params["w"] - 1.0) ** 2)

    def fitness(population, key):
        return population_apply(height, as_population(population))

    task = PopulationTask(
        name="hill",
        description="a hill",
        metric="height",
        init=lambda key: {"w": jnp.zeros(2)},
        fitness=fitness,
        score=lambda params, key: {"height": height(params)},
        default_generations=2,
        parameters=2,
    )
    monkeypatch.setattr(optkit.tasks.population, "get", lambda name, **options: task)
    return functools.partial(request, task="regression", task_options=None)


@pytest.mark.slow
def test_the_log_says_how_each_generation_went(whole):
    rows = read_log(whole[0] / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(GENERATIONS + 1))
    assert [row["step"] for row in rows if "held_out" in row] == [0, 2, 3]
    assert [row["evaluations"] for row in rows[1:]] == [MEMBERS * n for n in (1, 2, 3)]
    for row in rows[1:]:
        assert 0 < row["fitness_mean"] <= row["fitness_best"] < 1
        assert row["sigma"] == 0.5


@pytest.mark.slow
def test_a_run_in_parts_is_bit_for_bit_the_whole_run(whole, tmp_path):
    evolve(request(tmp_path, steps=2))
    outcome = evolve(request(tmp_path, resume=True))
    assert (outcome.started_at, outcome.step) == (2, GENERATIONS)
    found, wanted = (load_run(out, EVOLUTION) for out in (tmp_path, whole[0]))
    assert bits(found[:2]) == bits(wanted[:2])
    assert plain(read_log(tmp_path / "log.jsonl")) == plain(read_log(whole[0] / "log.jsonl"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"population": 16}, "population: saved 8, now 16"),
        ({"optimizer": "sgd"}, "optimizer: saved None, now 'sgd'"),
        ({"learning_rate": 0.1}, "learning_rate: saved None, now 0.1"),
        ({"hyperparameters": {"sigma": 0.1}}, "sigma: saved 0.5, now 0.1"),
        ({"seed": 1}, "key: saved 0, now 1"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_named(whole, changes, named):
    with pytest.raises(CommandError) as error:
        evolve(request(whole[0], resume=True, **changes))
    assert named in str(error.value)


def test_runs_of_another_command_are_told_apart(whole):
    with pytest.raises(CommandError, match="holds a run of `optkit evolve`, not of `optkit train`"):
        train(TrainRequest(method="adamw", task="regression", out=whole[0], resume=True))
    with pytest.raises(CommandError, match="already holds a run: pass --resume"):
        evolve(request(whole[0]))


def test_the_report_shows_the_log(whole, tmp_path):
    image, page = write_evolution_report(whole[1], tmp_path)
    assert image.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert "eggroll on digits, seed 0" in text
    assert f"{MEMBERS * GENERATIONS} evaluations" in text
    assert "http" not in text.replace("http://www.w3.org", "")


def test_panels_have_the_points_of_the_log():
    rows = [
        {"step": 0, "seconds": 0.0, "held_out": {"return": 1.0}},
        {"step": 1, "seconds": 0.5, "evaluations": 4, "fitness_mean": 2.0, "fitness_best": 3.0}
        | {"fitness_std": 0.5},
        {"step": 2, "seconds": 1.0, "evaluations": 8, "fitness_mean": None, "fitness_best": None}
        | {"fitness_std": None, "held_out": {"return": 5.0}},
    ]
    generations, evaluations, seconds, score = evolution_panels(rows, "return")
    assert [curve.x for curve in generations.curves] == [[1.0], [1.0]]
    assert [curve.x for curve in evaluations.curves] == [[4.0], [4.0]]
    best, mean = seconds.curves
    assert (best.mean, mean.low, mean.mean, mean.high) == ([3.0], [1.5], [2.0], [2.5])
    assert (score.curves[0].x, score.curves[0].mean) == ([0.0, 2.0], [1.0, 5.0])


def test_an_interrupted_run_without_a_generation_has_a_report(whole, tmp_path):
    nothing = Outcome(whole[1].settings, 0, 0, whole[1].rows[:1], stopped=True)
    _, page = write_evolution_report(nothing, tmp_path)
    assert "No generation was measured" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("method", "rate"), [("snes", 1.0), ("cma_es", 1.0), ("polystep", 1.0), ("mezo", None)]
)
@pytest.mark.slow
def test_a_step_of_its_own_is_taken_as_it_is(counting, tmp_path, method, rate):
    given = {"cma_es": {"sigma": 0.5}, "mezo": {"sigma": 0.5}}.get(method, {})
    common = {"method": method, "hyperparameters": given, "population": None, "steps": 1}
    evolve(counting(tmp_path / "usual", **common))
    usual = bits(load_run(tmp_path / "usual", EVOLUTION)[0])
    named = {"optimizer": "sgd" if rate else "adam", "learning_rate": rate or 0.03}
    evolve(counting(tmp_path / "named", **common, **named))
    assert bits(load_run(tmp_path / "named", EVOLUTION)[0]) == usual


@pytest.mark.slow
def test_fitness_rises_without_being_told_to_maximise(counting, tmp_path):
    common = {"hyperparameters": {"sigma": 0.1}, "population": 16, "steps": 12}
    for method in ("mezo", "openai_es"):  # mezo minimises unless told otherwise
        outcome = evolve(counting(tmp_path / method, method=method, learning_rate=0.1, **common))
        first, last = outcome.rows[0]["held_out"], outcome.rows[-1]["held_out"]
        assert last["height"] > first["height"] + 0.5


def test_parameters_that_are_not_finite_stop_the_run(counting, tmp_path):
    wild = {"optimizer": "sgd", "learning_rate": 1e38, "hyperparameters": {"sigma": 1e-3}}
    with pytest.raises(CommandError, match=r"the update norm became .* at step 1"):
        evolve(counting(tmp_path, method="mezo", population=2, **wild))
    assert math.isfinite(load_run(tmp_path, EVOLUTION)[0]["w"].sum())


@pytest.mark.slow
def test_the_command_runs_and_takes_a_configuration(command, tmp_path):
    config = tmp_path / "c.json"
    options = {"task_options": SMALL, "population": 4, "generations": 2, "optimizer": "sgd"}
    config.write_text(json.dumps({**options, "methods": {"openai_es": {"sigma": 0.2}}}))
    out = tmp_path / "run"
    words = ["evolve", "openai_es", "--config", config, "--out", out, "--population", 6]
    done = command(*words)
    assert done.code == 0, done.err
    assert "done: generation 2 of 2" in done.out
    assert "evaluations/s  unperturbed return" in done.out
    assert {file.name for file in out.iterdir()} >= {"log.jsonl", "report.png", "report.html"}
    record = load_run(out, EVOLUTION)[2]
    assert (record["population"], record["optimizer"]) == (6, "sgd")
    assert (record["in_force"]["sigma"], record["in_force"]["key"]) == (0.2, 0)
    again = command(*words, "--resume")
    assert "nothing left to do: the run is at generation 2 of 2" in again.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["egroll"], "did you mean 'eggroll'"),
        (["muon"], "muon is a recipe, not a population method"),
        (["pes"], "pes is for problems that are unrolled in parts"),
        (["eggroll", "--task", "cartpol"], "unknown task 'cartpol' (did you mean 'cartpole'?)"),
        (["eggroll", "-p", "sigmaa=1"], "eggroll has no hyperparameter 'sigmaa'"),
        (["cma_es"], "cma_es needs a value for sigma"),
        ([*EGGROLL, "--optimizer", "adm"], "--optimizer: unknown method 'adm'"),
        (["snes", "-p", "population=8", "--population", "8"], "population is given twice"),
        (["mezo", "--population", "7"], "mezo evaluates pairs: --population 7 is odd"),
        ([*EGGROLL, "--population", "7"], "eggroll: "),
        (["snes", "--optimizer", "sgd:learning_rate=1", "--learning-rate", "2"], "given twice"),
        (["egg", "--population", "4"], "egg: "),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(command, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    task = [] if "--task" in words else ["--task", "regression"]
    finished = command("evolve", *words, *task)
    assert finished.code == 2
    assert finished.err.startswith("error: ")
    assert finished.err.count("\n") == 1
    assert message in finished.err
    assert list(tmp_path.iterdir()) == []


def test_train_points_to_evolve(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished = command("train", "eggroll", "--task", "regression")
    assert "`optkit evolve` runs it" in finished.err
