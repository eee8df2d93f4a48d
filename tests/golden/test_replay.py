"""Stored files replay; files with other hyperparameters, made here by slow NumPy, do too."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from tests.conformance.methods import EVERY
from tests.golden import __main__ as golden
from tests.golden import oracles
from tests.golden.__main__ import main
from tests.golden.replay import DATA, load, replay


@pytest.mark.parametrize("file", sorted(DATA.glob("*.npz"))[::EVERY], ids=lambda file: file.stem)
def test_stored_file_replays(file):
    result = replay(file)
    assert result.verdict == "PASS", str(result)


@pytest.mark.sweep
@pytest.mark.parametrize("name", sorted(oracles.VARIANTS))
def test_file_with_other_hyperparameters_replays(name, tmp_path):
    method, hyper, steps = oracles.VARIANTS[name]
    file = tmp_path / f"{method}.npz"
    oracles.write(file, method, hyper, steps=steps, seed=1234)
    result = replay(file)
    assert result.steps == steps
    assert result.verdict == "PASS", str(result)


def _altered(source, target, change):
    golden = load(source)
    arrays, meta = dict(golden.arrays), dict(golden.meta)
    change(arrays, meta)
    np.savez(target, meta=json.dumps(meta), **arrays)
    return target


def test_a_wrong_trajectory_fails(tmp_path):
    def change(arrays, meta):
        arrays["p/9/wide"] = arrays["p/9/wide"] + 1e-4

    file = _altered(DATA / "lion.npz", tmp_path / "lion.npz", change)
    assert replay(file).verdict == "FAIL"


def test_a_wrong_hyperparameter_fails(tmp_path):
    def change(arrays, meta):
        meta["hyperparameters"] = {**meta["hyperparameters"], "momentum": 0.9}

    file = _altered(DATA / "muon.npz", tmp_path / "muon.npz", change)
    assert replay(file).verdict == "FAIL"


def test_a_file_under_another_name_is_known_by_its_method(tmp_path):
    file = _altered(DATA / "lion.npz", tmp_path / "seed7.npz", lambda arrays, meta: None)
    assert replay(file).verdict == "PASS"


def test_unknown_method_is_reported_and_exits_1(tmp_path, capsys):
    def change(arrays, meta):
        meta["method"] = "never heard of"

    file = _altered(DATA / "signsgd.npz", tmp_path / "mystery.npz", change)
    assert main([str(file)]) == 1
    line = capsys.readouterr().out.split()
    assert (line[0], line[1], line[-1]) == ("mystery", "10", "UNKNOWN")


def test_command_prints_one_line_a_file_and_exits_0(capsys, monkeypatch, tmp_path):
    names = ("lion", "signsgd", "signum")  # what every file gives is tested above
    for name in names:
        shutil.copy(DATA / f"{name}.npz", tmp_path)
    monkeypatch.setattr(golden, "DATA", tmp_path)
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names)
    assert all(len(line.split()) == 5 and line.endswith("PASS") for line in lines)


@pytest.mark.slow
def test_command_runs_as_a_module():
    command = [sys.executable, "-m", "tests.golden", str(DATA / "lion.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split()[0] == "lion"
