"""The measurement of rounds of many clients runs on tiny shapes."""

import json

import pytest

from benchmarks import common, federated_scale


def test_quick_run_measures_every_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(common, "fresh_process", lambda: None)
    federated_scale.main(["--quick", "--json", "--repeats", "1"])
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row["rule"] for row in rows] == ["mean"] * 3 + ["fedvarp", "trimmed mean"]
    assert all(row["clients"] == 20 and row["seconds"] > 0 for row in rows)
    memory = {row["rule"]: row["state_vectors"] for row in rows}
    assert memory["fedvarp"] > 20 and memory["mean"] < 1
