"""A race is fair, interleaved and reproducible, and leaves a report even when it is stopped."""

import json
import signal

import pytest

import optkit
from optkit.cli import app, racing
from optkit.cli.errors import CommandError
from optkit.cli.parsing import parse_method
from optkit.cli.racing import RaceSettings, race

SMALL = {"inputs": 6, "outputs": 4, "batch": 8}
FILES = {"report.html", "report.png", "results.json"}


class Recorder:
    """Notes what an observer is told."""

    def __init__(self):
        self.events = []

    def compiling(self, label):
        self.events.append(("compiling", label))

    def entered(self, run):
        self.events.append(("entered", run.label, run.seed))

    def moved(self, run):
        self.events.append(("moved", run.label, run.seed, run.step))


def settings(*words, **changes):
    given = {"seeds": (0, 1), "steps": 25, "seconds": None, "eval_every": 10}
    entrants = tuple(parse_method(word) for word in words)
    return RaceSettings(entrants=entrants, **{**given, **changes})


@pytest.fixture(scope="module")
def task():
    return optkit.tasks.get("regression", **SMALL)


def test_runs_take_turns_and_are_evaluated_where_due(task):
    recorder = Recorder()
    runs, stopped = race(task, settings("adamw", "lion"), recorder)
    assert not stopped
    assert [(run.label, run.seed) for run in runs] == [
        ("adamw", 0),
        ("adamw", 1),
        ("lion", 0),
        ("lion", 1),
    ]
    assert all(run.status == "finished" and run.step == 25 for run in runs)
    for run in runs:
        assert [row["step"] for row in run.held_out] == [0, 10, 20, 25]
        assert [row[0] for row in run.losses] == [10, 20, 25]
        assert run.held_out[-1]["seconds"] == run.seconds > 0
    moves = [event for event in recorder.events if event[0] == "moved"]
    for first in range(0, 12, 4):
        assert len({event[1:3] for event in moves[first : first + 4]}) == 4
    assert recorder.events.count(("compiling", "adamw")) == 1


def test_equal_seeds_share_their_start_and_a_race_repeats_itself(task):
    first, again = (race(task, settings("adamw", "lion"), Recorder())[0] for _ in range(2))
    starts = {(run.seed, run.held_out[0]["loss"]) for run in first}
    assert len(starts) == 2
    for one, other in zip(first, again, strict=True):
        assert [row["loss"] for row in one.held_out] == [row["loss"] for row in other.held_out]


def test_a_race_agrees_with_training_by_the_tasks_own_loop(task):
    (run,), _ = race(task, settings("adamw:learning_rate=0.01", seeds=(3,)), Recorder())
    records = optkit.tasks.run(task, optkit.adamw(0.01), steps=25, seed=3, eval_every=10)
    assert [row["loss"] for row in run.held_out[1:]] == [row.held_out["loss"] for row in records]


def test_compiling_and_evaluating_are_off_the_clock(task, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(racing.time, "perf_counter", lambda: now[0])
    costly = {"evaluate": 100.0, "batch": 1.0}

    def slow(name):
        original = getattr(task, name)

        def call(*arguments):
            now[0] += costly[name]
            return original(*arguments)

        return call

    from dataclasses import replace

    slowed = replace(task, evaluate=slow("evaluate"), batch=slow("batch"))
    runs, _ = race(slowed, settings("adamw", "lion", seeds=(0,)), Recorder())
    assert [run.seconds for run in runs] == [25.0, 25.0]
    assert runs[0].compile_seconds == 2.0


def test_a_limit_of_seconds_ends_each_run_on_its_own_clock(task):
    runs, _ = race(task, settings("adamw", "lion", steps=None, seconds=0.05), Recorder())
    assert all(run.status == "finished" and run.seconds >= 0.05 for run in runs)
    assert all(run.held_out[-1]["step"] == run.step for run in runs)


def test_a_run_that_diverges_ends_alone(task):
    runs, _ = race(task, settings("signsgd:learning_rate=1e30", "lion", seeds=(0,)), Recorder())
    assert [run.status for run in runs] == ["diverged", "finished"]


def test_wrong_entrants_are_refused_before_anything_is_compiled(task):
    recorder = Recorder()
    with pytest.raises(CommandError, match="did you mean 'lion'"):
        race(task, settings("adamw", "loin"), recorder)
    assert recorder.events == []


def test_the_command_writes_the_report_and_names_the_winners(command, tmp_path):
    out = tmp_path / "race"
    words = ["race", "adamw:learning_rate=0.01", "lion", "--task", "regression", "--seeds", "0,1"]
    finished = command(*words, "--steps", 20, "--out", out, "--task-option", "batch=8")
    assert finished.code == 0
    assert {path.name for path in out.iterdir()} == FILES
    assert "At equal steps (20): adamw:learning_rate=0.01 is best, loss " in finished.out
    assert "At equal training time" in finished.out
    data = json.loads((out / "results.json").read_text())
    assert data["settings"]["methods"]["adamw:learning_rate=0.01"]["learning_rate"] == 0.01
    assert data["settings"]["methods"]["lion"]["b2"] == 0.99
    assert data["task"]["options"] == {"batch": 8}
    sizes = {row["label"]: row["state_bytes"] for row in data["comparison"]["standings"]}
    assert sizes["lion"] < sizes["adamw:learning_rate=0.01"]


def test_a_directory_in_use_is_refused_before_anything_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(app, "race", lambda *_: ran.append(1) or ([], True))
    words = ("race", "lion", "--task", "regression", "--steps", 2)
    for out, given in (("old", ("--out", "old")), ("race-regression", ())):
        (tmp_path / out).mkdir()
        (tmp_path / out / "results.json").write_text("mine")
        refused = command(*words, *given)
        assert refused.code == 2 and not ran
        assert f"{out} already holds a race (results.json): pass --overwrite to" in refused.err
        assert (tmp_path / out / "results.json").read_text() == "mine"
    command(*words, "--out", "old", "--overwrite")
    assert ran == [1]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("")
    (tmp_path / "file").write_text("")
    for out, said in (("run", "run holds a training run: give another"), ("file", "is a file")):
        refused = command(*words, "--out", out, "--overwrite")
        assert refused.code == 2 and said in refused.err
    assert ran == [1]


@pytest.mark.slow
def test_a_configuration_gives_the_methods_and_the_command_line_overrules(command, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'task = "regression"\nsteps = 99\nseeds = [5]\ntask_options = {batch = 8}\n'
        "[methods.adamw]\nlearning_rate = 0.5\nb1 = 0.7\n[methods.lion]\n"
    )
    words = ["race", "adamw:learning_rate=0.25", "--config", config, "--steps", 4]
    assert command(*words, "--out", tmp_path / "out").code == 0
    data = json.loads((tmp_path / "out" / "results.json").read_text())
    (method,) = data["settings"]["methods"].values()
    assert (method["learning_rate"], method["b1"]) == (0.25, 0.7)
    assert (data["settings"]["steps"], data["settings"]["seeds"]) == (4, [5])
    assert command("race", "--config", config, "--steps", 2, "--out", tmp_path / "all").code == 0
    data = json.loads((tmp_path / "all" / "results.json").read_text())
    assert list(data["settings"]["methods"]) == ["adamw", "lion"]


def test_ctrl_c_stops_after_the_step_and_still_writes_the_report(launch, tmp_path):
    out = tmp_path / "race"
    words = ["race", "adamw", "lion", "--task", "regression", "--steps", 10**7, "--seeds", "0"]
    process = launch("-m", "optkit", *words, "--eval-every", 50, "--out", out)
    for line in process.stdout:
        if "step   200" in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "stopped by Ctrl-C" in rest
    assert "Traceback" not in rest
    assert {path.name for path in out.iterdir()} == FILES
    data = json.loads((out / "results.json").read_text())
    assert data["interrupted"] is True
    assert all(run["status"] == "stopped" for run in data["runs"])
    assert all(run["held_out"][-1]["step"] == run["step"] for run in data["runs"])
    assert all(run["step"] > 150 for run in data["runs"])  # no run lags by more than its turn
    assert data["comparison"]["steps"] == min(run["step"] for run in data["runs"])
    assert "Stopped by Ctrl-C" in (out / "report.html").read_text()


def test_ctrl_c_saves_a_training_run_that_can_go_on(launch, command, tmp_path):
    out = tmp_path / "run"
    words = ["train", "lion", "--task", "regression", "--eval-every", 50, "--out", out]
    process = launch("-m", "optkit", *words, "--steps", 10**6, "--checkpoint-every", 10**6)
    for line in process.stdout:
        if "step 100 " in line:
            break
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "--resume goes on" in rest
    finished = command(*words, "--resume", "--steps", 5)
    assert finished.code == 0
    assert "nothing left to do: the run is at step" in finished.out
