"""Training writes a whole log and whole checkpoints, and goes on where it was."""

import json
import math

import jax
import numpy as np
import optax
import pytest

import optkit
from optkit.cli import training
from optkit.cli.checkpoints import Checkpoints
from optkit.cli.errors import CommandError
from optkit.cli.logs import TrainingLog, read_log
from optkit.cli.settings import TrainRequest
from optkit.cli.training import load_run, train

STEPS = 12


def request(out, **changes):
    given = {
        "method": "muon",
        "hyperparameters": {"learning_rate": 0.01},
        "task": "regression",
        "task_options": {"inputs": 6, "outputs": 4, "batch": 8},
        "steps": STEPS,
        "checkpoint_every": 5,
        "eval_every": 4,
        "out": out,
    }
    return TrainRequest(**{**given, **changes})


def without_time(rows):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same_bits(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    for mine, theirs in pairs:
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(request(out))
    return out


def test_the_log_has_each_step_once_and_evaluations_where_due(whole):
    rows = read_log(whole / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert [row["step"] for row in rows if "held_out" in row] == [0, 4, 8, 12]
    assert {"loss", "gradient_norm", "seconds"} <= set(rows[1])
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert rows[-1]["held_out"]["loss"] < rows[0]["held_out"]["loss"]


def test_a_checkpoint_holds_arrays_step_and_settings(whole):
    params, state, record = load_run(whole)
    assert record["step"] == STEPS
    assert (record["method"], record["seed"]) == ("muon", 0)
    assert record["hyperparameters"] == {"learning_rate": 0.01}
    assert set(record["in_force"]) == set(optkit.catalogue.get("muon").hyperparameters())
    assert record["versions"]["jax"] == jax.__version__
    task = optkit.tasks.get("regression", inputs=6, outputs=4, batch=8)
    tx = optkit.muon(0.01)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(tx.init, params))
    held_out = read_log(whole / "log.jsonl")[-1]["held_out"]["loss"]
    assert task.evaluate(params)["loss"] == pytest.approx(held_out, rel=1e-6)


def test_a_run_in_parts_is_bit_for_bit_the_whole_run(whole, tmp_path):
    train(request(tmp_path, steps=7))
    outcome = train(request(tmp_path, resume=True))
    assert (outcome.started_at, outcome.step) == (7, STEPS)
    params, state, _ = load_run(tmp_path)
    expected = load_run(whole)
    assert_same_bits((params, state), expected[:2])
    found, wanted = (without_time(read_log(out / "log.jsonl")) for out in (tmp_path, whole))
    found[7].pop("held_out")  # the last step of the first part was evaluated too
    assert found == wanted


@pytest.mark.sweep
@pytest.mark.parametrize("method", ["adamw", "lion", "signsgd", "cautious_muon", "grams"])
def test_other_methods_resume_bit_for_bit(method, tmp_path):
    small = {"method": method, "hyperparameters": None, "steps": 4}
    train(request(tmp_path / "a", **small))
    train(request(tmp_path / "b", **{**small, "steps": 2}))
    train(request(tmp_path / "b", **small, resume=True))
    assert_same_bits(load_run(tmp_path / "b")[:2], load_run(tmp_path / "a")[:2])


def test_resuming_takes_what_was_not_asked_for_from_the_saved_run(whole, tmp_path):
    train(request(tmp_path, steps=3, seed=4, log_every=2))
    outcome = train(TrainRequest(method="muon", out=tmp_path, steps=5, resume=True))
    assert outcome.settings.seed == 4
    assert outcome.settings.hyperparameters == {"learning_rate": 0.01}
    assert outcome.settings.task_options == {"inputs": 6, "outputs": 4, "batch": 8}
    assert [row["step"] for row in outcome.rows] == [0, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hyperparameters": {"learning_rate": 0.02}}, "learning_rate: saved 0.01, now 0.02"),
        ({"hyperparameters": {"learning_rate": 0.01, "b1": 0.5}}, "b1: saved 0.95, now 0.5"),
        ({"hyperparameters": {}}, "learning_rate: saved 0.01, now 0.02"),
        ({"method": "lion"}, "method: saved 'muon', now 'lion'"),
        ({"seed": 1}, "seed: saved 0, now 1"),
        ({"task": "digits"}, "task: saved 'regression', now 'digits'"),
        ({"task_options": {"inputs": 6}}, "task_options: saved"),
        ({"eval_every": 3}, "eval_every: saved 4, now 3"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_named(whole, changes, named):
    before = (whole / "log.jsonl").read_bytes()
    with pytest.raises(CommandError) as error:
        train(request(whole, resume=True, **changes))
    assert named in str(error.value)
    assert error.value.exit_code == 2
    assert (whole / "log.jsonl").read_bytes() == before


def test_a_default_that_changed_since_is_a_difference(whole, monkeypatch):
    def older(self):
        record = original(self)
        return {**record, "in_force": {**record["in_force"], "nesterov": False}}

    original = training.TrainSettings.record
    monkeypatch.setattr(training.TrainSettings, "record", older)
    with pytest.raises(CommandError, match="nesterov: saved True, now False"):
        train(request(whole, resume=True))


def test_the_same_values_written_otherwise_are_no_difference(whole):
    spelled = {"b1": 0.95, "learning_rate": 1e-2, "nesterov": True}
    assert train(request(whole, resume=True, hyperparameters=spelled)).step == STEPS


def test_a_directory_with_a_run_is_not_overwritten(whole):
    with pytest.raises(CommandError, match="already holds a run: pass --resume"):
        train(request(whole))


def test_resume_without_a_run_starts_one_and_says_so(tmp_path, capsys):
    assert train(request(tmp_path / "new", steps=2, resume=True)).started_at == 0
    said = f"nothing to resume in {tmp_path / 'new'}: starting at step 0\n"
    assert capsys.readouterr().err == said
    train(request(tmp_path / "new", steps=2, resume=True))
    assert capsys.readouterr().err == ""


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_checkpoint(tmp_path):
    wild = {"method": "signsgd", "hyperparameters": {"learning_rate": 1e30}, "checkpoint_every": 1}
    with pytest.raises(CommandError, match="try a smaller learning_rate") as error:
        train(request(tmp_path, **wild))
    assert error.value.exit_code == 1
    params, _, record = load_run(tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == record["step"]


def test_loading_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(CommandError, match="no complete checkpoint"):
        load_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_kind_of_leaf_comes_back(tmp_path):
    params = {"a/b": {"kernel": np.ones((2, 3), np.float32)}, "none": np.zeros((0, 3), np.float32)}
    state = (
        optax.TraceState(trace={"w": jax.numpy.full((3,), 1.1, jax.numpy.bfloat16)}),
        optax.EmptyState(),
        optax.MaskedNode(),
        None,
        jax.random.key(7),
        jax.random.split(jax.random.key(1), 2),
        jax.numpy.ones((4,), jax.numpy.int4),
        jax.numpy.ones((4,), jax.numpy.float8_e4m3fn),
        jax.numpy.array(True),
        jax.numpy.array(3, jax.numpy.int32),
    )
    params = jax.tree.map(jax.numpy.asarray, params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, params, state, {"steps": [1, 2], "rate": 0.1})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.record(1) == {"steps": [1, 2], "rate": 0.1}
        shapes = jax.eval_shape(lambda: (params, state))
        found_state, found_params = checkpoints.restore(1, *shapes)
    bare = lambda leaf: (  # noqa: E731
        jax.random.key_data(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else leaf
    )
    assert isinstance(found_state[0], optax.TraceState)
    found, wanted = (
        jax.tree.map(bare, tree) for tree in ((found_params, found_state), (params, state))
    )
    assert_same_bits(found, wanted)


def test_an_optimizer_without_state_is_saved_too(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.numpy.ones(2)}, optax.EmptyState(), {})
        state, _ = checkpoints.restore(1, {"w": jax.numpy.zeros(2)}, optax.EmptyState())
    assert state == optax.EmptyState()


def test_a_checkpoint_of_another_shape_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.numpy.ones(2)}, (), {})
        with pytest.raises(CommandError, match=r"does not fit .* params/w has shape \(2,\)"):
            checkpoints.restore(1, {"w": jax.numpy.ones(3)}, ())


def test_a_checkpoint_of_another_structure_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jax.numpy.ones(2)}, (), {})
        with pytest.raises(CommandError, match="does not fit this method and task"):
            checkpoints.restore(1, {"v": jax.numpy.ones(2)}, ())


def test_a_log_that_was_cut_off_is_mended(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 3')
    with TrainingLog(path, after=1) as log:
        assert [row["step"] for row in log.rows] == [0, 1]
        log.append({"step": 2, "loss": math.inf})
    assert path.read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2, "loss": null}\n'


def test_the_command_trains_and_resumes(command, tmp_path):
    out = tmp_path / "run"
    words = ["train", "lion", "--task", "regression", "--task-option", "batch=8", "--out", out]
    words += ["-p", "learning_rate=1e-3", "--checkpoint-every", 2]
    first = command(*words, "--steps", 4)
    assert first.code == 0
    assert "done: step 4 of 4" in first.out
    assert "held-out loss" in first.out
    again = command(*words)
    assert again.code == 2
    assert "--resume" in again.err
    second = command(*words, "--steps", 6, "--resume")
    assert second.code == 0
    assert len(read_log(out / "log.jsonl")) == 7
    refused = command(*words[:-4], "-p", "learning_rate=2e-3", "--resume")
    assert refused.code == 2
    assert "learning_rate: saved 0.001, now 0.002" in refused.err


def test_a_configuration_gives_what_the_command_line_leaves_open(command, tmp_path):
    config = tmp_path / "c.json"
    out = tmp_path / "run"
    options = {"task": "regression", "steps": 3, "seed": 2, "out": str(out), "eval_every": 1}
    methods = {"adamw": {"learning_rate": 0.1, "b1": 0.5}}
    config.write_text(json.dumps({**options, "methods": methods}))
    words = ["train", "adamw", "--config", config, "-p", "b1=0.6", "--steps", 2]
    assert command(*words).code == 0
    record = load_run(out)[2]
    assert record["hyperparameters"] == {"learning_rate": 0.1, "b1": 0.6}
    assert (record["steps"], record["seed"], record["eval_every"]) == (2, 2, 1)


def test_checkpoints_of_runs_are_merged_and_judged(command, tmp_path):
    words = ["--task", "regression", "--task-option", "batch=8", "--steps", 6]
    words += ["--checkpoint-every", 2, "--keep", 3]
    for seed in (0, 1):
        run = ["train", "adamw", *words, "--seed", seed, "--out", tmp_path / f"{seed}"]
        assert command(*run).code == 0
    out = tmp_path / "merged.npz"
    given = [f"{tmp_path / '0'}@all", f"{tmp_path / '1'}@4", tmp_path / "1", "--out", out]
    finished = command("merge", *given, "--weights", "0.1,0.2,0.3,0.4,0")
    assert finished.code == 0, finished.err
    assert finished.out.count("held-out") == 6
    chosen = [(0, 2), (0, 4), (0, 6), (1, 4)]
    trees = [load_run(tmp_path / str(seed), step=step)[0] for seed, step in chosen]
    leaves = [dict(optkit.tree.leaves_with_paths(tree)) for tree in trees]
    with np.load(out) as merged:
        assert set(merged.files) == set(leaves[0])
        for path in leaves[0]:
            parts = zip((0.1, 0.2, 0.3, 0.4), leaves, strict=True)
            mean = sum(weight * tree[path] for weight, tree in parts)
            np.testing.assert_allclose(merged[path], mean, rtol=1e-5, atol=1e-7)
    for wrong, message in (
        ([f"{tmp_path / '0'}@3"], "no checkpoint of step 3; it has 2, 4, 6 (or @all)"),
        ([tmp_path / "none"], "holds no complete checkpoint"),
        ([tmp_path / "0", "--weights", "best"], "give uniform, linear, ema, loss, or a number"),
        ([tmp_path / "0", "--weights", "2"], "the weights sum to 2"),
        ([tmp_path / "0", "--out", "merged.pt"], "must end in .npz"),
    ):
        refused = command("merge", *wrong)
        assert refused.code == 2 and message in refused.err, refused.err
