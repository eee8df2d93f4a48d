"""``optkit check transfer``: slopes over widths, with and without muP, and the files it writes."""

import json

import numpy as np
import pytest

from optkit import transfer


@pytest.mark.slow
def test_check_transfer_writes_slopes_and_a_picture(command, tmp_path):
    words = "check transfer adamw --task digits_linen --widths 4,16 --steps 1 --seeds 0"
    found = command(*words.split(), "-p", "learning_rate=0.001", "--out", str(tmp_path / "out"))
    assert found.code == 0, found.err
    assert "one learning rate for all leaves" in found.out and "muP" in found.out
    record = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert set(record["mup"]["slopes"]) == {"", "input", "hidden", "head"}
    # Adam's first step is a sign: as large as the learning rate, times the factor of the width.
    for law, slope in (("standard", 0.0), ("mup", -1.0)):
        assert record[law]["update_slopes"]["hidden/kernel"] == pytest.approx(slope, abs=0.3)
    assert np.shape(record["standard"]["changes"]["head"]) == (1, 2)
    page = (tmp_path / "out" / "transfer.html").read_text()
    assert "<svg" in page and "hidden/kernel" in page and "http://" not in page.split("<svg")[0]
    assert (tmp_path / "out" / "transfer.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("power", [0.0, 1.0])
@pytest.mark.slow
def test_the_exit_code_tells_the_verdict_if_it_is_asked_for(command, tmp_path, monkeypatch, power):
    widths = (4, 16)
    grown = np.float64(widths) ** power
    found = transfer.Coordinates(widths, 1, {"up": grown}, {"up": grown[None]}, {"up/w": grown})
    monkeypatch.setattr(transfer, "coordinate_check", lambda *_, **__: found)
    words = ["check", "transfer", "--widths", "4,16", "--out", str(tmp_path)]
    assert command(*words).code == 0
    strict = command(*words, "--strict")
    assert strict.code == int(power)
    assert ("up by width^+1.00" in strict.err) == bool(power)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--widths 8", "--widths takes different widths"),
        ("--widths 8,x", "--widths takes different widths"),
        ("--task regression --widths 4,8", "regression"),
        ("--task nothing --widths 4,8", "unknown task"),
    ],
)
def test_wrong_words_are_answered(command, words, told):
    found = command("check", "transfer", "adamw", *words.split())
    assert found.code == 2 and told in found.err
