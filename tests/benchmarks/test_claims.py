"""Every experiment runs in its tiny form, and what is stored is what an experiment said."""

import dataclasses
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.claims import __main__ as command
from benchmarks.claims import engine

SETTING = engine.Setting(seeds=(0, 1), quick=True)


@pytest.mark.sweep
@pytest.mark.slow
@pytest.mark.parametrize("name", command.names())
def test_quick_form_runs(name: str) -> None:
    outcome = importlib.import_module(f"benchmarks.claims.{name}").experiment(SETTING)
    assert outcome.seeds == (0, 1)
    assert all(len(row) == len(outcome.header) for row in outcome.rows)
    assert "claim:" in str(outcome)
    assert json.loads(json.dumps(dataclasses.asdict(outcome)))["holds"] in (True, False)


@pytest.mark.parametrize("file", sorted(command.RESULTS.glob("*.json")), ids=lambda f: f.stem)
def test_stored_tables_are_those_of_an_experiment(file: Path) -> None:
    stored = json.loads(file.read_text())
    assert file.stem in command.names()
    assert stored["command"] == f"python -m benchmarks.claims {file.stem}"
    assert len(stored["seeds"]) >= 3 and stored["seconds"] <= 600


def test_steps_to_a_loss_counts_training_steps() -> None:
    held_out = np.array([[[3.0, 2.0, 1.0], [3.0, 2.0, 3.0]], [[9.0, 9.0, np.inf]] * 2])
    curves = engine.Curves((0.1, 0.2), held_out, {}, every=20)
    assert curves.best == 0
    assert curves.steps_to(2.5) == 40 and curves.steps_to(0.5) == np.inf


def test_a_search_goes_on_while_the_best_rate_is_at_the_edge() -> None:
    trainer = object.__new__(engine.Trainer)
    asked = []

    def curves(rates, seeds):
        asked.append((tuple(rates), tuple(seeds)))
        losses = np.array([[[abs(np.log2(r) - np.log2(0.0051))] for _ in seeds] for r in rates])
        return engine.Curves(tuple(rates), losses, {}, every=1)

    trainer.curves = curves  # type: ignore[method-assign]
    done = trainer.tuned((0.02, 0.04), engine.Setting(seeds=(0, 1, 2)))
    assert done.rates == (0.005,)
    assert asked[-1] == ((0.005,), (0, 1, 2))
    assert {seeds for _, seeds in asked[:-1]} == {engine.SEARCH}
