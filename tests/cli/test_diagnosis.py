"""``--diagnose`` and ``--tensorboard``: measurements in the log, in event files and in pages."""

import json
import math
import shutil
import struct

import jax
import numpy as np
import pytest

import optkit
from optkit.cli.diagnosis import attention_panels, entrant_panels, leaf_panels, spectrum_panels
from optkit.cli.errors import CommandError
from optkit.cli.measuring import measure_for, read_diagnose
from optkit.cli.racing import Run
from optkit.cli.report import write_diagnostics
from optkit.cli.running import prepare
from optkit.cli.settings import TrainRequest
from optkit.cli.tensorboard import TensorBoard, scalars
from optkit.cli.training import load_run, train

TINY = ("--task", "regression", "--steps", "4", "--task-option", "inputs=4")


def events(directory):
    """Reads tags and values of event files: TFRecord frames around protobuf messages."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted(directory.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 16 + size
            for value in event.summary.value:
                seen = value.histo if value.HasField("histo") else value.simple_value
                found.setdefault(value.tag, {})[event.step] = seen
    return found


def rows(*steps):
    return [
        {
            "step": step,
            "loss": 2.0 / step,
            "diagnostics": {
                "w/top_singular": 1.0 + step,
                "w/weight_rms": 1.0,
                "w/update_to_weight": 0.01,
                "b/weight_rms": 0.0,
                "b/update_to_weight": 0.0,
            },
        }
        for step in steps
    ]


@pytest.mark.slow
def test_measurements_land_in_log_and_page(command, tmp_path):
    out, board = tmp_path / "run", tmp_path / "board"
    words = ("--diagnose", "2", "--out", str(out), "--tensorboard", str(board))
    assert command("train", "muon", *TINY, *words).code == 0
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    measured = {row["step"]: row["diagnostics"] for row in log if "diagnostics" in row}
    assert [*measured] == [1, 3]
    assert all(value >= 0 for value in measured[3].values())
    assert any(name.endswith("/top_singular") for name in measured[1])
    assert "<svg" in (out / "diagnostics.html").read_text()
    sent = events(board)
    assert {*sent["train/loss"]} == {1, 2, 3, 4} and {*sent["held_out/loss"]}
    assert any(tag.startswith("diagnostics/") for tag in sent)
    # The optimizer's state holds the measurements: another interval is another run.
    words = ("--diagnose", "3", "--resume", "--out", str(out))
    again = command("train", "muon", *TINY[:3], "6", *words)
    assert again.code == 2 and "diagnose: saved 2, now 3" in again.err


@pytest.mark.slow
def test_race_draws_what_it_measured(command, tmp_path):
    words = ("race", "adamw", "muon", *TINY, "--seeds", "0", "--diagnose", "1")
    assert command(*words, "--out", str(tmp_path)).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Diagnostics</h2>" in page and "stable rank" in page
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert all(run["diagnostics"][-1]["step"] == 4 for run in runs)


def test_a_diagnosis_is_no_state_of_the_method():
    task, entry = optkit.tasks.get("regression"), optkit.catalogue.get("lion")
    bare = prepare(task, entry, {})
    seen = prepare(task, entry, {}, diagnose=2)
    assert seen.state_bytes == bare.state_bytes
    kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(seen.abstract_state))
    assert kept > seen.state_bytes


def test_event_files_hold_every_number_and_forget_what_is_replaced(tmp_path):
    with TensorBoard(tmp_path) as board:
        for row in rows(1, 2, 3):
            board.row(row)
    found = events(tmp_path)
    assert found["train/loss"] == pytest.approx({1: 2.0, 2: 1.0, 3: 2.0 / 3})
    assert found["diagnostics/top_singular/w"] == {1: 2.0, 2: 3.0, 3: 4.0}
    assert scalars({"step": 1, "loss": None}) == {}
    with TensorBoard(None) as board:
        board.row(rows(1)[0])


def test_panels_by_leaf_and_by_entrant():
    panels = {panel.y_title: panel for panel in leaf_panels([{"step": 0}, *rows(1, 3)])}
    (curve,) = panels["top singular value"].curves
    assert (curve.label, curve.x, curve.mean) == ("w", [1, 3], [2.0, 4.0])
    # A leaf of zeros has no logarithm.
    assert [c.label for c in panels["log10 of update to weight"].curves] == ["w"]
    numbers = {f"leaf{i}/top_singular": float(i) for i in range(8)}
    run = Run("muon", 0, 0.0, 0, diagnostics=[{"step": 2, "values": numbers}])
    assert [*entrant_panels([run])] == ["Sizes"]
    by_entrant = {panel.y_title: panel for panel in entrant_panels([run])["Sizes"]}
    (curve,) = by_entrant["top singular value"].curves
    assert (curve.low, curve.mean, curve.high) == ([2.0], [3.5], [6.0])


def all_measured(step):
    """A row with everything, as the log of a diverging run could have it."""
    heads = {f"mix[{head}]/entropy": head + step for head in (0, 1)}
    heads |= {f"mix[{head}]/max_logit": 2.0 * head for head in (0, 1)}
    layer = {"mix/entropy_mean": 0.5 + step, "mix/mean_similarity": None, "mix/spectral_gap": 0.25}
    weights = {"w/top_singular": 2.0, "w/effective_rank": 1.5, "w/median_singular": None}
    return {
        "step": step,
        "diagnostics": {**heads, **layer, **weights},
        "spectra": {"w": [100.0, 10.0 * step, 0.0]},
    }


def test_spectra_and_attention_have_panels_and_histograms(tmp_path):
    rows = [{"step": 0}, all_measured(1), all_measured(3)]
    effective, median, first, last = spectrum_panels(rows)
    assert [(c.label, c.x, c.mean) for c in effective.curves] == [("w", [1, 3], [1.5, 1.5])]
    assert median.curves == ()
    assert (first.title[-6:], last.title[-6:]) == ("step 1", "step 3")
    # A singular value of 0 has no logarithm.
    assert (last.curves[0].x, last.curves[0].mean) == ([1, 2], [2.0, math.log10(30.0)])
    assert first.y_range == last.y_range == pytest.approx((0.95, 2.05))
    entropy, logit, similarity, gap = attention_panels(rows)
    (curve,) = entropy.curves
    assert (curve.label, curve.x, entropy.band) == ("mix", [1, 3], "heads")
    assert (curve.low, curve.mean, curve.high) == ([1, 3], [1.5, 3.5], [2, 4])
    assert logit.curves[0].high == [2.0, 2.0]
    assert similarity.curves == () and gap.curves[0].mean == [0.25, 0.25]
    assert spectrum_panels(rows[:1]) == attention_panels(rows[:1]) == []
    write_diagnostics(rows, "run", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert [part.split("<")[0] for part in page.split("<h2>")[1:]] == [
        "Sizes",
        "Spectra",
        "Attention",
    ]
    run = Run("muon", 0, 0.0, 0, diagnostics=[{"step": 1, "values": rows[1]["diagnostics"]}])
    groups = entrant_panels([run])
    assert [(name, len(panels)) for name, panels in groups.items()] == [
        ("Sizes", 4),
        ("Spectra", 2),
        ("Attention", 4),
    ]
    assert groups["Attention"][0].curves[0].mean == [1.5]
    with TensorBoard(tmp_path / "board") as board:
        board.row(all_measured(3))
    found = events(tmp_path / "board")
    assert found["diagnostics/entropy_mean/mix"] == {3: 3.5}
    histogram = found["spectra/w"][3]
    assert (histogram.num, histogram.min, histogram.max) == (3.0, 0.0, 100.0)


def test_what_diagnose_takes(command, tmp_path):
    assert read_diagnose("attention, 5,spectra") == (5, ("spectra", "attention"))
    assert read_diagnose(7) == (7, None) and read_diagnose("spectra") == (None, ("spectra",))
    for wrong in ("0", "-3", "2,3", "spectra,spectra", "spectrum", "", "2.5"):
        with pytest.raises(CommandError, match=r"diagnose=.* does not fit"):
            read_diagnose(wrong)
    config = tmp_path / "run.toml"
    config.write_text("diagnose = '3,spectre'\n")
    for words in (("train", "lion"), ("race", "lion")):
        refused = command(*words, *TINY, "--config", config, "--out", tmp_path / "run")
        assert refused.code == 2 and "did you mean 'spectra'" in refused.err
    refused = command("train", "lion", *TINY, "--diagnose", "attention", "--out", tmp_path / "run")
    assert refused.code == 2 and not (tmp_path / "run").exists()
    assert "task 'regression' has a model without attention" in refused.err
    assert "--task bytelm" in refused.err


@pytest.fixture(scope="module")
def words_to_learn(tmp_path_factory):
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("to measure is to know; " * 20)
    return text


def measured_request(out, text, **changes):
    small = {"width": 4, "layers": 1, "heads": 2, "context": 6, "batch": 2, "held_out_windows": 2}
    given = {
        "method": "signsgd",
        "task": "bytelm",
        "task_options": {**small, "text": str(text)},
        "steps": 4,
        "eval_every": 4,
        "checkpoint_every": 2,
        "diagnose": 2,
        "measures": ("spectra", "attention"),
        "out": out,
    }
    return TrainRequest(**{**given, **changes})


def test_a_language_model_logs_spectra_and_attention_and_resumes(words_to_learn, tmp_path):
    whole = train(measured_request(tmp_path / "whole", words_to_learn))
    rows = {row["step"]: row for row in whole.rows if "spectra" in row}
    assert [*rows] == [1, 3]
    layer = "blocks/0/attention"
    for row in rows.values():
        assert len(row["spectra"]) == 6 and len(row["spectra"][f"{layer}/query/kernel"]) == 4
        assert 0 < row["diagnostics"][f"{layer}/entropy_mean"] < np.log(6.0)
        assert 1 <= row["diagnostics"][f"{layer}/query/kernel/effective_rank"] <= 4
    # From the checkpoint in the middle, with what it says of all that was not asked for again.
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "4")
    request = TrainRequest(method="signsgd", out=tmp_path / "parts", steps=4, resume=True)
    parts = train(request)
    assert (parts.started_at, parts.step) == (2, 4)
    assert parts.settings.measures == ("spectra", "attention")
    for name in ("diagnostics", "spectra"):
        assert [row.get(name) for row in parts.rows] == [row.get(name) for row in whole.rows]
    found, wanted = (load_run(tmp_path / name)[:2] for name in ("parts", "whole"))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    with pytest.raises(CommandError, match=r"measures: saved \['spectra', 'attention'\], now"):
        train(
            measured_request(tmp_path / "parts", words_to_learn, measures=("spectra",), resume=True)
        )


def test_attention_in_a_row_is_that_of_the_weights(words_to_learn):
    options = measured_request(words_to_learn, words_to_learn).task_options
    task = optkit.tasks.get("bytelm", **options)
    params = task.init(jax.random.key(0))
    found = measure_for(task, ("attention",))((), params)["diagnostics"]
    ((path, scores),) = task.attention(params).items()
    for head in (0, 1):
        largest = float(np.max(np.asarray(scores)[:, head]))
        assert found[f"{path}[{head}]/max_logit"] == largest
    sharper = measure_for(task, ("attention",))((), jax.tree.map(lambda x: 4 * x, params))
    assert sharper["diagnostics"][f"{path}/entropy_mean"] < found[f"{path}/entropy_mean"]


@pytest.mark.slow
def test_race_draws_spectra_and_attention(command, words_to_learn, tmp_path):
    options = measured_request(tmp_path, words_to_learn).task_options
    given = [word for pair in options.items() for word in ("--task-option", "{}={}".format(*pair))]
    words = ("race", "lion", "signsgd", "--task", "bytelm", *given, "--steps", "2", "--seeds", "0")
    assert command(*words, "--diagnose", "1,spectra,attention", "--out", tmp_path).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h3>Spectra</h3>" in page and "<h3>Attention</h3>" in page
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    last = [run["diagnostics"][-1]["values"] for run in runs]
    assert all(row["blocks/0/attention[1]/max_logit"] > 0 for row in last)
    assert all(row["blocks/0/mlp/up/kernel/effective_rank"] > 1 for row in last)
