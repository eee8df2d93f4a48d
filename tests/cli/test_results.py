"""Standings are taken at equal steps and at equal seconds, and say when nothing is decided."""

import dataclasses
import math

import pytest

from optkit.cli.racing import Run
from optkit.cli.results import compare, panels


def make(label, seed, seconds_per_step, slope, *, steps=10, status="finished", start=4.0):
    """A run whose metric falls by `slope` a step."""
    points = [
        {"step": step, "seconds": step * seconds_per_step, "error": start - slope * step}
        for step in range(0, steps + 1, 5)
    ]
    losses = [(int(p["step"]), p["seconds"], p["error"] + 1) for p in points[1:]]
    return Run(
        label,
        seed,
        0.5,
        64,
        steps,
        steps * seconds_per_step,
        status,
        losses=losses,
        held_out=points,
    )


def test_the_fast_method_can_win_on_the_clock_and_lose_by_steps():
    runs = [
        make("slow", 0, 1.0, 0.20),
        make("slow", 1, 1.0, 0.21),
        make("fast", 0, 0.2, 0.10),
        make("fast", 1, 0.2, 0.11),
    ]
    outcome = compare(runs, "error")
    assert (outcome.steps, outcome.seconds) == (10, 2.0)
    assert [row.label for row in outcome.standings] == ["slow", "fast"]
    slow, fast = outcome.standings
    assert slow.at_steps.mean == pytest.approx(1.95)
    assert slow.at_steps.spread == pytest.approx(0.1 / math.sqrt(2))
    # Two seconds are two steps of the slow one, interpolated between its evaluations at 0 and 5.
    assert slow.at_seconds.mean == pytest.approx(4 - 2 * 0.205)
    assert fast.at_seconds.mean == pytest.approx(2.95)
    assert (outcome.by_steps.winner, outcome.by_seconds.winner) == ("slow", "fast")
    assert outcome.by_steps.clear
    assert outcome.mark("slow", outcome.by_steps) == "★"
    assert outcome.mark("slow", outcome.by_seconds) == ""
    assert slow.seconds_per_step == pytest.approx(1.0)


def test_a_lead_within_the_spread_is_no_clear_win():
    runs = [
        make("a", 0, 1, 0.20),
        make("a", 1, 1, 0.30),
        make("b", 0, 1, 0.24),
        make("b", 1, 1, 0.25),
    ]
    verdict = compare(runs, "error").by_steps
    assert verdict.winner == "a"
    assert not verdict.clear
    assert "is within the seed spread" in verdict.text
    assert compare(runs, "error").mark("a", verdict) == "☆"


def test_one_seed_decides_nothing_clearly():
    outcome = compare([make("a", 0, 1, 0.3), make("b", 0, 1, 0.1)], "error")
    assert outcome.standings[0].at_steps.spread is None
    assert not outcome.by_steps.clear
    assert "one seed" in outcome.by_steps.text


def test_a_method_that_loses_a_seed_is_last_and_does_not_shorten_the_race():
    lost = make("a", 1, 1, 0.4, steps=5, status="diverged")
    outcome = compare([make("a", 0, 1, 0.4), lost, make("b", 0, 1, 0.1)], "error")
    assert outcome.steps == 10
    assert [row.label for row in outcome.standings] == ["b", "a"]
    assert outcome.standings[1].at_steps is None
    assert "diverged at step 5 (1 of 2 seeds)" in outcome.standings[1].note
    assert outcome.by_steps.winner == "b"


def test_a_run_that_never_began_is_left_out():
    idle = Run("b", 0, 0.1, 64, held_out=[{"step": 0, "seconds": 0.0, "error": 4.0}])
    outcome = compare([make("a", 0, 1, 0.2), idle], "error")
    assert outcome.steps == 10
    assert outcome.standings[1].at_steps is None
    assert "0 of 1 seeds ran" in outcome.standings[1].note
    assert compare([idle], "error").by_steps.winner is None


def test_an_interrupted_race_is_compared_where_all_have_been():
    outcome = compare([make("a", 0, 1, 0.2), make("b", 0, 2, 0.1, steps=5)], "error")
    assert outcome.steps == 5
    assert outcome.standings[0].at_steps.mean == pytest.approx(3.0)


def test_panels_average_the_steps_that_all_seeds_have():
    runs = [make("a", 0, 1.0, 0.2), make("a", 1, 3.0, 0.3, steps=5)]
    loss_steps, _, error_steps, error_seconds = panels(runs, "error")
    assert loss_steps.curves[0].x == [5]
    assert error_steps.curves[0].x == [0, 5]
    assert error_seconds.curves[0].x == [0, 10]
    assert error_steps.curves[0].mean == pytest.approx([4.0, 2.75])
    assert error_steps.curves[0].low[1] == pytest.approx(2.5)


def test_a_run_that_explodes_does_not_flatten_the_picture():
    panel = panels([make("a", 0, 1, 0.2), make("b", 0, 1, -1e6)], "error")[2]
    assert panel.y_range is not None
    assert panel.y_range[1] < 10


def test_nothing_finite_gives_empty_panels():
    bad = make("a", 0, 1, math.nan, start=math.nan)
    assert all(panel.curves == () for panel in panels([bad], "error"))


def test_a_held_out_metric_called_loss_is_not_the_training_loss():
    run = make("a", 0, 1.0, 0.2)
    named = [{**point, "loss": point["error"]} for point in run.held_out]
    training, _, held_out, _ = panels([dataclasses.replace(run, held_out=named)], "loss")
    assert held_out.curves[0].mean == pytest.approx([4.0, 3.0, 2.0])
    assert training.curves[0].mean == pytest.approx([4.0, 3.0])
