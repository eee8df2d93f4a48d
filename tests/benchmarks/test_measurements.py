"""The measurements run on tiny shapes, and their arithmetic is right."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import optkit
from benchmarks import common, compile_time, curvature_step, group_bytes, step_time


@pytest.fixture(autouse=True)
def keep_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compilation cache of the other tests in this process stays as it is.
    monkeypatch.setattr(common, "fresh_process", lambda: None)


@pytest.mark.parametrize("module", [step_time, compile_time, group_bytes])
@pytest.mark.slow
def test_quick_run_prints_tables(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    module.main(["--quick"])
    assert "---" in capsys.readouterr().out


def test_json_holds_versions_and_all_contestants(capsys: pytest.CaptureFixture[str]) -> None:
    step_time.main(["--quick", "--json", "--only", "lion"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["versions"]["optkit"] == optkit.__version__
    assert [row["name"] for row in printed["results"]] == ["optkit.lion", "optax.lion"]
    assert printed["results"][1]["ratio"]["best"] > 0


def test_refreshing_steps_are_told_apart_and_muon_comes_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    curvature_step.main(["--quick", "--json", "--only", "adamw", "--steps", "2"])
    printed = capsys.readouterr()
    assert [row["name"] for row in json.loads(printed.out)["results"]] == ["muon", "adamw"]
    assert "adamw: step 3 of 3" in printed.err
    # The first step is not timed: the list begins with step 2.
    entrant = curvature_step.Entrant(optkit.adamw, every=3)
    assert curvature_step.split_times(entrant, [2.0, 3.0, 4.0, 5.0, 6.0]) == ([2, 4, 5], [3, 6])
    staggered = curvature_step.Entrant(optkit.adamw, every=3, staggered=True)
    assert curvature_step.split_times(staggered, [2.0, 3.0]) == ([2, 3], [])


def test_model_has_the_stated_size_and_roles() -> None:
    shapes = common.gpt_like()
    leaves = jax.tree.leaves(shapes)
    assert len(leaves) == 67
    assert sum(leaf.size for leaf in leaves) == 29_499_904
    roles = jax.tree.leaves(optkit.roles(shapes))
    assert {str(role): roles.count(role) for role in set(roles)} == {
        "embedding": 2,
        "matrix": 48,
        "norm": 17,
    }


def test_same_routing_gives_optax_the_matrices_that_we_take() -> None:
    shapes = common.gpt_like(32, 1, 64, 16)
    dims = step_time._routed_like_optkit(shapes)
    is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)  # noqa: E731
    taken = [d is not None for d in jax.tree.leaves(dims, is_leaf=is_leaf)]
    ours = [row.method == "muon" for row in optkit.plan(optkit.muon(), shapes).rows]
    assert taken == ours


def test_step_reuses_state_and_parameters() -> None:
    shapes = common.gpt_like(32, 1, 64, 16)
    tx = optkit.adamw(1e-3)
    arguments = common.abstract_arguments(tx, shapes)
    compiled = common.make_step(tx).lower(*arguments).compile()
    reused = compiled.memory_analysis().alias_size_in_bytes
    scalars = 64  # the recorded learning rate is written, never read
    assert reused >= optkit.tree.tree_bytes(arguments[1:]) - scalars
    # Gradients, state and parameters are needed in any case.
    assert common.peak_bytes(compiled) >= optkit.tree.tree_bytes(arguments)


def test_rounds_are_timed_without_the_first() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in ("a", "b")}
    seconds = common.interleave(runs, 3)
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(calls) == "baabbaab"


def test_ratio_is_above_one_if_ours_is_faster() -> None:
    ratio = common.Ratio.of([1.0, 2.0, 9.0], [4.0, 4.0, 9.0])
    assert (ratio.best, ratio.median) == (4.0, 2.0)


def test_stages_of_compilation_add_up() -> None:
    found = compile_time.measure(optax.sgd(1.0), common.equal_leaves(2, 4))
    assert found["seconds"] == pytest.approx(found["trace"] + found["lower"] + found["compile"])
    assert found["stablehlo"] > 0 < found["hlo"]


@pytest.mark.parametrize("form", group_bytes.FORMS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_forms_of_stacking_agree(form: str, size: int) -> None:
    leaves = [jnp.eye(4, 6) * (i + 1.0) for i in range(3)]
    expected = [optkit.linalg.orthogonal_factor(leaf) for leaf in leaves]
    found = group_bytes.grouped(group_bytes.FORMS[form], size, leaves)
    for a, b in zip(found, expected, strict=True):
        assert jnp.allclose(a, b, atol=1e-5)


def _row(stack: int, milliseconds: float, form: str = "batched") -> dict[str, Any]:
    return {
        "form": form,
        "stack": stack,
        "stack_bytes": stack * 2**12,
        "milliseconds": milliseconds,
        "compile_seconds": 1.0 / stack,
    }


def test_budget_picks_the_largest_stack_that_fits() -> None:
    rows = [_row(1, 4.0), _row(2, 2.0), _row(4, 3.0), _row(4, 1.0, "looped")]
    assert [group_bytes.chosen(rows, "batched", b)["stack"] for b in (0, 2**13, 2**20)] == [1, 2, 4]
    assert group_bytes.chosen(rows, "looped", 2**20)["milliseconds"] == 1.0
    slow = {row["budget"]: row["slowdown"] for row in group_bytes.slowdowns([rows], "batched")}
    assert (slow[0], slow[2**13], slow[2**14]) == pytest.approx((4.0, 2.0, 3.0))
    assert group_bytes.recommended(group_bytes.slowdowns([rows], "batched")) == 2**13
