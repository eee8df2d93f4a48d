"""A run killed with SIGKILL at any moment and resumed is bit for bit the run that was not."""

import itertools
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from optkit.cli.logs import read_log
from optkit.cli.training import load_run

STEPS = 40
EVERY = 4
KILLER = Path(__file__).with_name("killing.py")
UNFINISHED = "*.orbax-checkpoint-tmp*"


def words(out, *more):
    chosen = ["--task", "regression", "--task-option", "batch=8", "-p", "learning_rate=0.01"]
    paces = ["--steps", STEPS, "--checkpoint-every", EVERY, "--eval-every", 10, "--resume"]
    return ["train", "muon", *chosen, *paces, "--out", out, *more]


def fingerprint(out):
    """Every bit of parameters and state, and the log without its clock."""
    params, state, record = load_run(out)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves((params, state))]
    rows = read_log(out / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert record["step"] == STEPS
    seconds = [row.pop("seconds") for row in rows]
    assert seconds == sorted(seconds)
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays], rows


def wait_killed(process):
    out, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL, out


@pytest.fixture
def whole(command, tmp_path):
    """The fingerprint of a run that was never stopped."""
    out = tmp_path / "whole"
    assert command(*words(out)).code == 0
    return fingerprint(out)


@pytest.mark.slow
def test_a_run_killed_in_the_middle_of_a_save_goes_on(command, launch, whole, tmp_path):
    out = tmp_path / "killed"
    wait_killed(launch(KILLER, "save", 20, *words(out)))
    assert list(out.glob(f"checkpoints/{UNFINISHED}"))
    resumed = command(*words(out))
    assert resumed.code == 0, resumed.err
    assert fingerprint(out) == whole
    assert not list(out.glob(f"checkpoints/{UNFINISHED}"))


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_every_kind_of_moment_goes_on(
    command, launch, whole, tmp_path
):
    out = tmp_path / "killed"
    moments = [
        ("before-save", 0), ("save", 0), ("after-save", 0), ("step", 3), ("log", 6), ("save", 8),
        ("before-save", 12), ("step", 11), ("after-save", 20), ("save", 24), ("log", 26),
    ]  # fmt: skip
    for moment, number in moments:
        wait_killed(launch(KILLER, moment, number, *words(out)))
    assert command(*words(out)).code == 0
    assert fingerprint(out) == whole


@pytest.mark.slow
def test_a_run_killed_from_outside_at_any_time_goes_on(command, launch, whole, tmp_path):
    """The delays are spread from before the first checkpoint to near the end of a long run."""
    out = tmp_path / "killed"
    for delay in itertools.chain([0.0, 0.02, 0.05], np.linspace(0.1, 0.6, 5)):
        process = launch("-m", "optkit", *words(out))
        deadline = time.monotonic() + 60
        before = len(read_log(out / "log.jsonl"))
        while len(read_log(out / "log.jsonl")) == before and process.poll() is None:
            assert time.monotonic() < deadline
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
    assert command(*words(out)).code == 0
    assert fingerprint(out) == whole


@pytest.mark.slow
def test_the_language_model_resumes_bit_for_bit(command, launch, tmp_path):
    small = ["--task", "bytelm", "--steps", 6, "--checkpoint-every", 2, "--eval-every", 6]
    small += [v for o in ("width=32", "layers=1", "context=32") for v in ("--task-option", o)]
    run = lambda out: ["train", "adamw", *small, "--out", out, "--resume"]  # noqa: E731
    assert command(*run(tmp_path / "whole")).code == 0
    wait_killed(launch(KILLER, "step", 5, *run(tmp_path / "killed")))
    assert command(*run(tmp_path / "killed")).code == 0
    found, wanted = (load_run(tmp_path / name)[:2] for name in ("killed", "whole"))
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)
