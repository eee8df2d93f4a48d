"""A report is complete, stands alone and survives odd names and numbers."""

import dataclasses
import json
import math
import re
from xml.etree import ElementTree

import pytest

from optkit.cli.racing import Run
from optkit.cli.report import RaceReport, page, write_report


def make_run(label, seed, slope):
    points = [{"step": s, "seconds": 0.1 * s, "error": 4 - slope * s} for s in (0, 5, 10)]
    losses = [(s, 0.1 * s, 5 - slope * s) for s in (5, 10)]
    return Run(label, seed, 0.5, 640, 10, 1.0, "finished", losses=losses, held_out=points)


def make_report(runs, *, interrupted=False):
    task = {"name": "toy", "description": "A toy <task>.", "metric": "error", "options": {}}
    settings = {"steps": 10, "seconds": None, "seeds": [0, 1], "methods": {"a": {"b1": math.inf}}}
    return RaceReport(task, settings, {"jax": "1.2.3"}, runs, "error", interrupted)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    runs = [make_run(f"m{i}:<b>&", seed, 0.01 * i) for i in range(10) for seed in (0, 1)]
    return write_report(make_report(runs), tmp_path_factory.mktemp("report") / "deep" / "er")


def test_the_data_are_strict_json(written):
    def refuse(word):
        raise AssertionError(word)

    data = json.loads(written[0].read_text(), parse_constant=refuse)
    assert set(data) == {"task", "settings", "versions", "interrupted", "comparison", "runs"}
    assert len(data["runs"]) == 20
    assert data["comparison"]["standings"][0]["label"] == "m9:<b>&"
    assert data["settings"]["methods"]["a"]["b1"] is None


def test_times_that_contain_a_diagnosis_say_so():
    report = make_report([make_run("a", 0, 0.1)])
    assert report.timing == "" and "--diagnose" not in page(report)
    seen = dataclasses.replace(report, settings={**report.settings, "diagnose": 10})
    assert "Times contain what --diagnose measures" in seen.timing
    assert seen.timing in page(seen)


def test_the_picture_is_a_png_of_readable_size(written):
    data = written[1].read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[at : at + 4]) for at in (16, 20))
    assert width >= 1200
    assert height >= 900


def test_the_page_needs_no_network_and_escapes_names(written):
    text = written[2].read_text()
    assert not re.findall(r"<script[^>]*\bsrc=|<link\b|<img\b|<iframe\b|@import", text)
    assert "<script" not in text
    assert len(text) < 1_000_000
    assert "m9:&lt;b&gt;&amp;" in text
    assert "A toy &lt;task&gt;." in text
    for title in ("Training loss over steps", "Held-out error over training seconds"):
        assert title in text
    assert "&quot;jax&quot;: &quot;1.2.3&quot;" in text
    assert "Stopped by Ctrl-C" not in text


def test_points_that_tell_their_values_lie_on_their_curves(written):
    text = written[2].read_text()
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    space = "{http://www.w3.org/2000/svg}"
    drawn = [path.get("d") for path in svg.iter(f"{space}path")]
    vertices = {
        (round(float(x), 1), round(float(y), 1))
        for x, y in re.findall(r"[ML] (\S+) (\S+)", " ".join(drawn))
    }
    circles = list(svg.iter(f"{space}circle"))
    # Ten entrants in four panels; the first tenth of each is above the panel's top, if anything.
    assert len(circles) >= 4 * 10
    for circle in circles:
        x, y = (float(circle.get(name)) for name in ("cx", "cy"))
        assert any(abs(x - a) + abs(y - b) < 0.25 for a, b in vertices)
    titles = [circle.findtext(f"{space}title") for circle in circles]
    assert "m9:<b>&: held-out error 3.1 at 10 steps" in titles
    assert "m9:<b>&: training loss 4.55 at 0.5 training seconds" in titles


def test_a_report_of_almost_nothing_is_written_too(tmp_path):
    points = [{"step": 0, "seconds": 0.0, "error": math.nan}]
    run = Run("a", 0, 0.1, 8, 1, 0.1, "diverged", losses=[], held_out=points)
    files = write_report(make_report([run], interrupted=True), tmp_path)
    assert "Stopped by Ctrl-C" in files[2].read_text()
    assert json.loads(files[0].read_text())["runs"][0]["held_out"][0]["error"] is None
