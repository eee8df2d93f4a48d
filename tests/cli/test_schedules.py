"""Schedules follow their formulas, serve every learning rate, and belong to a resumed run."""

import json
import math

import jax
import numpy as np
import pytest

import optkit
from optkit.cli.errors import CommandError
from optkit.cli.hyperparameters import build
from optkit.cli.logs import read_log
from optkit.cli.schedules import KINDS, RateSchedule, read_schedule
from optkit.cli.settings import TrainRequest
from optkit.cli.training import load_run, train

STEPS = 12
SMALL = {"inputs": 6, "outputs": 4, "batch": 8}
FALLING = RateSchedule(kind="cosine", warmup=3, final=0.1)


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("warmup", [0, 1, 4])
@pytest.mark.parametrize("final", [0.0, 0.25])
def test_each_step_takes_its_share_of_the_peak(kind, warmup, final):
    final = final if kind != "constant" else 0.0
    rate = RateSchedule(kind=kind, warmup=warmup, final=final).over(0.5, 10)
    found = [float(rate(step)) if callable(rate) else rate for step in range(10)]
    wanted = [0.5 * share(kind, warmup, final, 10, step) for step in range(10)]
    np.testing.assert_allclose(found, wanted, rtol=2e-6)
    assert min(found) > 0, "no step is lost"


def test_without_a_schedule_the_rate_stays_a_plain_number():
    assert RateSchedule().over(0.5, None) == 0.5


def test_every_learning_rate_of_a_method_follows():
    entry = optkit.catalogue.get("muon")
    params = {"up": {"kernel": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)}}
    params = jax.tree.map(jax.numpy.asarray, params)
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
    tx = build(entry, entry.example, FALLING, STEPS)
    jax.eval_shape(tx.init, {"up": {"kernel": jax.ShapeDtypeStruct((3, 4), jax.numpy.float32)}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, r"unknown schedule 'cosin' \(did you mean 'cosine'"),
        ({"schedule": "cosine", "final": 1.5}, "final=1.5 is a share of the learning rate"),
        ({"warmup": -1}, "warmup=-1 must be at least 0"),
        ({"final": 0.1}, "final=0.1 needs a schedule that falls"),
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
    ],
)
def test_a_schedule_has_to_fit_the_run(schedule, steps, message):
    with pytest.raises(CommandError, match=message):
        schedule.over(0.1, steps)


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
    recorded = {"kind": "cosine", "warmup": 2, "final": 0.1}
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
    expected = {"kind": "linear", "warmup": 0, "final": 0.5}
    assert load_run(tmp_path / "r")[2]["schedule"] == expected


def test_a_race_on_the_clock_alone_cannot_decay(command, tmp_path):
    words = ["race", "lion", "--task", "regression", "--seconds", 1, "--out", tmp_path / "r"]
    finished = command(*words, "--schedule", "linear")
    assert finished.code == 2
    assert "give steps too" in finished.err
    assert not (tmp_path / "r").exists()
