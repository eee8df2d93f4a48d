"""``--diagnose`` and ``--tensorboard``: measurements in the log, in event files and in pages."""

import json
import struct

import pytest

from optkit.cli.diagnosis import entrant_panels, leaf_panels
from optkit.cli.racing import Run
from optkit.cli.tensorboard import TensorBoard, scalars

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
                found.setdefault(value.tag, {})[event.step] = value.simple_value
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
    by_entrant = {panel.y_title: panel for panel in entrant_panels([run])}
    (curve,) = by_entrant["top singular value"].curves
    assert (curve.low, curve.mean, curve.high) == ([2.0], [3.5], [6.0])
