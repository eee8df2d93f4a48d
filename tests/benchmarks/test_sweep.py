"""The sweep searches, resumes, follows the edge, and writes what the race reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sweep
from optkit.cli.choices import entrants
from optkit.cli.parsing import load_config


class FakeRunner:
    """Answers with a parabola in the logarithm of the rate, and counts the points."""

    calls: list[tuple[str, dict[str, float]]] = []  # noqa: RUF012
    best_index = {"adamw": -1, "muon": -4}  # noqa: RUF012

    def __init__(self, task: Any, setting: sweep.Setting, method: str) -> None:
        self.setting, self.method = setting, method

    def __call__(self, values: dict[str, float]) -> dict[str, Any]:
        self.calls.append((self.method, dict(values)))
        away = sweep.grid_index(values["learning_rate"], 2) - self.best_index[self.method]
        return {
            **vars(self.setting),
            "method": self.method,
            "values": dict(values),
            "metric": "loss",
            "held_out": float(away**2) if away < 3 else None,
        }


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    monkeypatch.setattr(sweep, "Runner", FakeRunner)
    monkeypatch.setattr(FakeRunner, "calls", [])
    return FakeRunner


def words(folder: Path, *more: str) -> list[str]:
    return [
        *more,
        *("--task", "regression", "--steps", "2", "--around", "1"),
        *("--results", str(folder / "results.json"), "--config", str(folder / "demo.toml")),
    ]


@pytest.mark.parametrize("per_decade", sweep.SERIES)
def test_grid_is_increasing_and_inverted(per_decade: int) -> None:
    values = [sweep.grid_value(i, per_decade) for i in range(-9, 9)]
    assert values == sorted(set(values))
    assert [sweep.grid_index(v, per_decade) for v in values] == list(range(-9, 9))


def test_search_follows_the_edge_and_ties_adam_rates(
    fake: type[FakeRunner], tmp_path: Path
) -> None:
    sweep.main(words(tmp_path, "muon"))
    # AdamW starts around 3e-3 and has to walk to 0.3; Muon then takes that for its other leaves.
    assert [values["learning_rate"] for method, values in fake.calls if method == "adamw"] == [
        *(1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)
    ]
    config = load_config(tmp_path / "demo.toml")
    found = {spec.name: dict(spec.hyperparameters) for spec in entrants(config, None)}
    assert found == {
        "adamw": {"learning_rate": 0.3},
        "muon": {"learning_rate": 0.01, "adam_learning_rate": 0.3},
    }
    assert (config["task"], config["steps"], config["seeds"]) == ("regression", 200, [0, 1])


def test_a_point_at_the_edge_is_marked(
    fake: type[FakeRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "MAX_POINTS", 3)
    sweep.main(words(tmp_path, "adamw"))
    assert "at the edge of the grid" in (tmp_path / "demo.toml").read_text(encoding="utf-8")


def test_finished_points_are_not_run_again(fake: type[FakeRunner], tmp_path: Path) -> None:
    sweep.main(words(tmp_path, "adamw"))
    first, text = len(fake.calls), (tmp_path / "demo.toml").read_text(encoding="utf-8")
    file = tmp_path / "results.json"
    points = json.loads(file.read_text(encoding="utf-8"))["points"]
    assert len(points) == first
    file.write_text(json.dumps({"points": points[:-2]}), encoding="utf-8")
    sweep.main(words(tmp_path, "adamw"))
    assert len(fake.calls) == first + 2
    assert (tmp_path / "demo.toml").read_text(encoding="utf-8") == text
    # Other settings are other points.
    sweep.main([*words(tmp_path, "adamw"), "--seed", "7"])
    assert len(fake.calls) == 2 * first + 2


def test_a_diverged_point_never_wins() -> None:
    assert sweep.score({"held_out": None}) == float("inf")


def test_real_points_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "MAX_POINTS", 3)
    sweep.main([*words(tmp_path, "adamw", "--task-option", "condition=10.0"), "--steps", "8"])
    points = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["points"]
    assert len({point["held_out"] for point in points}) == 3
    assert load_config(tmp_path / "demo.toml")["task_options"] == {"condition": 10.0}


def test_unknown_methods_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweep.parse(["adamx"])
    assert "adamx" in capsys.readouterr().err


def test_the_demo_has_a_rate_for_each_of_its_methods() -> None:
    config = load_config(sweep.HERE / "demo.toml")
    assert {spec.name for spec in entrants(config, None)} == set(sweep.DEMO)
