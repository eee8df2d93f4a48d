"""Schedules follow their formulas, serve every learning rate, and belong to a resumed run."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import optkit
from optkit import schedules
from optkit.cli.errors import CommandError
from optkit.cli.hyperparameters import bind, build, rates_of
from optkit.cli.logs import read_log
from optkit.cli.schedules import RateSchedule, read_schedule
from optkit.cli.settings import TrainRequest
from optkit.cli.training import load_run, train

STEPS = 12
SMALL = {"inputs": 6, "outputs": 4, "batch": 8}
FALLING = RateSchedule(kind="cosine", warmup=3, final=0.1)


SHORT = schedules.linear(1.0, 8).to_dict()


class Stopped(Exception):
    """Stands for a run that dies."""


def request(out, **changes):
    given = {
        "method": "muon",
        "hyperparameters": {"learning_rate": 0.02},
        "task": "regression",
        "task_options": SMALL,
        "steps": STEPS,
        "schedule": FALLING,
        "checkpoint_every": 5,
        "out": out,
    }
    return TrainRequest(**{**given, **changes})


def share(kind, warmup, final, steps, step):
    """The share of the peak that update number `step`, from 0, takes: from the definition."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / (steps - warmup)
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return final + (1 - final) * falling[kind]


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(request(out))
    return out


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("final", [0.0, 0.25])
def test_each_step_takes_its_share_of_the_peak(kind, warmup, final):
    final = final if kind != "constant" else 0.0
    rate = RateSchedule(kind=kind, warmup=warmup, final=final).over(0.5, 10)
    found = [float(rate(step)) if callable(rate) else rate for step in range(10)]
    wanted = [0.5 * share(kind, warmup, final, 10, step) for step in range(10)]
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    assert min(found) > 0, "no step is lost"


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"schedule": "wsd", "decay": 0.4}, {0: 0.5, 5: 0.5, 8: 0.25, 9: 0.125}),
        # Inverse: 1/lr rises linearly from 1 to 4.
        ({"schedule": "wsd", "decay": 3, "final": 0.25}, {7: 0.5, 8: 0.25, 9: 0.5 / 3}),
        ({"schedule": "wsd_s", "decay": 2, "cycles": 2}, {3: 0.5, 4: 0.25, 5: 0.5, 9: 0.25}),
        ({"schedule": "inverse_sqrt", "warmup": 2}, {0: 0.25, 1: 0.5, 2: 0.5, 8: 0.25}),
    ],
)
def test_further_kinds_fall_where_they_say(settings, wanted):
    rate = read_schedule(settings).over(0.5, 10)
    assert {step: float(rate(step)) for step in wanted} == pytest.approx(wanted)


def test_without_a_schedule_the_rate_stays_a_plain_number():
    assert RateSchedule().over(0.5, None) == 0.5


def test_every_learning_rate_of_a_method_follows():
    entry = optkit.catalogue.get("muon")
    params = {"up": {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)}}
    params = jax.tree.map(jnp.asarray, params)
    given = {"learning_rate": 0.5, "adam_learning_rate": 0.25}
    tx = build(entry, given, RateSchedule(kind="linear", warmup=2, final=0.5), 6)
    state, update = tx.init(params), jax.jit(tx.update)
    for step in range(6):
        _, state = update(params, state, params)
        expected = share("linear", 2, 0.5, 6, step)
        matrix, rest = (
            float(optkit.get_hyperparam(state, name))
            for name in ("muon/learning_rate", "adamw/learning_rate")
        )
        assert (matrix, rest) == pytest.approx((0.5 * expected, 0.25 * expected), rel=1e-6)


@pytest.mark.parametrize("entry", optkit.catalogue.entries(kind="recipe"), ids=lambda e: e.name)
def test_every_recipe_takes_a_schedule(entry):
    state = build(entry, entry.example, FALLING, STEPS).init({"up": {"kernel": jnp.ones((3, 4))}})
    found = optkit.hyperparams(state)
    rates = [float(found[name]) for name in found if name.endswith("learning_rate")]
    given = rates_of(entry, bind(entry, entry.example)).values()
    assert given or entry.hyperparameters()["learning_rate"].default is None
    for peak in given:
        assert pytest.approx(peak / FALLING.warmup) in rates, "the warm-up's first step"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, r"unknown schedule 'cosin' \(did you mean 'cosine'"),
        ({"schedule": "cosine", "final": 1.5}, "final=1.5 is a share of the learning rate"),
        ({"warmup": -1}, "warmup=-1 must be at least 0"),
        ({"final": 0.1}, "final=0.1 needs a schedule that falls"),
        ({"schedule": "linear", "decay": 0.2}, "decay=0.2 is of schedule wsd and wsd_s only"),
        ({"schedule": "wsd", "cycles": 2}, "cycles=2 is of schedule wsd_s only"),
        ({"schedule": "inverse_sqrt"}, "falls from the end of its warm-up: give one"),
        ({"schedule": "nowhere.json"}, "nowhere.json: no such file; give one of `optkit sch"),
        ({"schedule": "some.json", "final": 0.1}, "some.json says all of the course"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(CommandError, match=message):
        read_schedule(settings)


@pytest.mark.parametrize(
    ("schedule", "steps", "message"),
    [
        (FALLING, None, "give steps too"),
        (FALLING, 3, "warmup=3 leaves nothing of a run of 3 steps"),
        (RateSchedule(warmup=5), 4, "warmup=5 leaves nothing"),
        (RateSchedule(kind="wsd", decay=9), 8, "decay=9.0 take 0 . 9 of 8 steps"),
        (RateSchedule(kind="file", course=SHORT), 9, "the schedule ends after 8 steps"),
    ],
)
def test_a_schedule_has_to_fit_the_run(schedule, steps, message):
    with pytest.raises(CommandError, match=message):
        schedule.over(0.1, steps)


@pytest.mark.slow
def test_a_scheduled_run_that_died_goes_on_bit_for_bit(whole, tmp_path):
    def die(row):
        if row["step"] == 8:
            raise Stopped

    with pytest.raises(Stopped):
        train(request(tmp_path), on_row=die)
    outcome = train(TrainRequest(method="muon", out=tmp_path, resume=True))
    assert (outcome.started_at, outcome.step) == (5, STEPS)
    assert outcome.settings.schedule == FALLING
    assert bits(load_run(tmp_path)[:2]) == bits(load_run(whole)[:2])
    losses = [[row.get("loss") for row in read_log(out / "log.jsonl")] for out in (tmp_path, whole)]
    assert losses[0] == losses[1]


def test_the_schedule_changes_the_run(whole, tmp_path):
    train(request(tmp_path, schedule=None))
    assert bits(load_run(tmp_path)[0]) != bits(load_run(whole)[0])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schedule": RateSchedule(kind="linear", warmup=3, final=0.1)}, "schedule: saved {"),
        ({"schedule": RateSchedule(kind="cosine", warmup=2, final=0.1)}, "'warmup': 2"),
        ({"schedule": RateSchedule()}, "now {'kind': 'constant'"),
        ({"steps": 20}, f"steps: saved {STEPS}, now 20"),
    ],
)
def test_resuming_with_another_schedule_is_refused(whole, changes, named):
    with pytest.raises(CommandError) as error:
        train(request(whole, resume=True, **changes))
    assert named in str(error.value)
    assert error.value.exit_code == 2


def test_a_run_that_does_not_decay_may_grow(tmp_path):
    rising = RateSchedule(warmup=2)
    train(request(tmp_path, steps=4, schedule=rising))
    assert train(request(tmp_path, steps=6, schedule=rising, resume=True)).step == 6


def test_the_commands_take_and_record_a_schedule(command, tmp_path):
    words = ["--task", "regression", "--task-option", "batch=8", "--steps", 6]
    words += ["--schedule", "cosine", "--warmup", 2, "--final", 0.1]
    recorded = dataclasses.asdict(RateSchedule(kind="cosine", warmup=2, final=0.1))
    assert command("train", "lion", *words, "--out", tmp_path / "run").code == 0
    assert load_run(tmp_path / "run")[2]["schedule"] == recorded
    race = ["race", "adamw", "muon", *words, "--seeds", "0", "--out", tmp_path / "race"]
    assert command(*race).code == 0
    data = json.loads((tmp_path / "race" / "results.json").read_text())
    assert data["settings"]["schedule"] == recorded
    help_text = command("train", "--help").out
    assert all(word in help_text for word in ("--schedule", "--warmup", "--final", "cosine"))


def test_a_configuration_holds_a_schedule_and_the_command_line_overrules(command, tmp_path):
    config = tmp_path / "c.toml"
    config.write_text(
        'task = "regression"\nsteps = 6\nschedule = "cosine"\nwarmup = 0\nfinal = 0.5\n'
    )
    words = ["train", "lion", "--config", config, "--schedule", "linear", "--out", tmp_path / "r"]
    assert command(*words).code == 0
    expected = dataclasses.asdict(RateSchedule(kind="linear", final=0.5))
    assert load_run(tmp_path / "r")[2]["schedule"] == expected


def test_a_race_on_the_clock_alone_cannot_decay(command, tmp_path):
    words = ["race", "lion", "--task", "regression", "--seconds", 1, "--out", tmp_path / "r"]
    finished = command(*words, "--schedule", "linear")
    assert finished.code == 2
    assert "give steps too" in finished.err
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_a_run_is_refined_and_the_next_one_follows_the_file(command, tmp_path):
    words = ["--task", "regression", "--task-option", "batch=8", "--steps", 12]
    first, second, file = tmp_path / "first", tmp_path / "second", tmp_path / "rate.json"
    given = ["train", "adamw", "-p", "learning_rate=0.25", *words]
    assert command(*given, "--schedule", "linear", "--out", first).code == 0
    assert command("schedule", "refine", first, "--smooth", 0, "--out", file).code == 0
    norms = [row["gradient_norm_l1"] for row in read_log(first / "log.jsonl")[1:]]
    want = schedules.refine(norms, smooth=0.0)
    rate = schedules.load(file)
    np.testing.assert_allclose([float(rate(t)) for t in range(12)], want, rtol=1e-5)
    assert command(*given, "--schedule", file, "--out", second).code == 0
    _, state, record = load_run(second)
    assert record["schedule"]["course"] == rate.to_dict()
    assert float(optkit.get_hyperparam(state, "learning_rate")) == 0.0, "the last step's"
    # What the file held is a part of the run, not the file.
    file.unlink()
    assert command("train", "adamw", "--resume", "--out", second).code == 0


def test_norms_that_a_log_lacks_are_interpolated(command, tmp_path):
    rows = [{"step": 0}, {"step": 1, "gradient_norm": 4.0}, {"step": 5, "gradient_norm": 2.0}]
    rows.insert(2, {"step": 3, "gradient_norm": None})
    log, file = tmp_path / "log.jsonl", tmp_path / "rate.json"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["schedule", "refine", log, "--kind", "sgd", "--smooth", 0, "--out", file]
    assert command(*words).code == 0
    want = schedules.refine([4.0, 3.5, 3.0, 2.5, 2.0], "sgd", smooth=0.0)
    got = [float(schedules.load(file)(t)) for t in range(5)]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for given, message in (
        ([log], "with gradient_norm_l1; a schedule needs at least 2"),
        ([tmp_path / "none"], "is no log"),
        ([log, "--kind", "lion"], "unknown kind 'lion'"),
    ):
        finished = command("schedule", "refine", *given)
        assert finished.code == 2 and message in finished.err


def test_the_rate_that_is_given_is_the_peak_of_a_file_too(tmp_path):
    for peak in (1.0, 0.02, 30.0):
        file = schedules.save(schedules.wsd(peak, 1000, warmup=10), tmp_path / "rate.json")
        rate = read_schedule({"schedule": str(file)}).over(0.5, 1000)
        assert float(rate(500)) == pytest.approx(0.5) and float(rate(1000)) == pytest.approx(0.05)


def test_courses_are_drawn(command, tmp_path):
    file = schedules.save(schedules.linear(1.0, 50), tmp_path / "own.json")
    page, image = tmp_path / "a.html", tmp_path / "a.png"
    words = ["schedule", "plot", "wsd:decay=0.2,final=0.1", file, "--steps", 100, "--out"]
    assert command(*words, page).code == command(*words, image).code == 0
    text = page.read_text()
    assert "wsd:decay=0.2,final=0.1: share of the peak 0.1 at 100 steps" in text
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "must end in .png" in command(*words, tmp_path / "a.pdf").err
    assert "did you mean 'cosine'" in command("schedule", "plot", "cosin").err
    assert "have no 'steps'" in command("schedule", "plot", "wsd:steps=3").err


def test_a_schedule_free_run_is_judged_at_its_average(tmp_path):
    given = {"method": "schedule_free_adamw", "schedule": None}
    outcome = train(request(tmp_path, **given))
    params, state, _ = load_run(tmp_path)
    task = optkit.tasks.get("regression", **SMALL)
    average = optkit.schedule_free_eval_params(state, params)
    assert outcome.rows[-1]["held_out"]["loss"] == pytest.approx(task.evaluate(average)["loss"])
    assert task.evaluate(params)["loss"] != pytest.approx(task.evaluate(average)["loss"])
