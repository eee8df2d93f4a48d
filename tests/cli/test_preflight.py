"""``optkit preflight`` as a user meets it; a compiler that any machine has stands in."""

import dataclasses
import json
from typing import Any

import jax
import pytest

from optkit.aot import CHIPS, Target, find_target, targets
from optkit.cli.errors import CommandError
from optkit.cli.preflight import parse_mesh


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes ``cpu:2x4`` a topology of 8 CPU devices, ``2xcpu:2x2`` two slices of 4."""
    chip = dataclasses.replace(CHIPS["v5e"], name="cpu", platform="cpu")
    monkeypatch.setitem(CHIPS, "cpu", chip)
    monkeypatch.setattr(
        targets,
        "_devices",
        lambda chip, shape, slices: tuple(jax.devices()[: slices * shape[0] * shape[1]]),
    )


def words(*more: str) -> tuple[str, ...]:
    return ("preflight", "--model", "tiny", "--topology", "cpu:2x4", *more)


@pytest.mark.usefixtures("fake")
def test_two_methods_side_by_side(command: Any) -> None:
    found = command(*words("--method", "signsgd", "--against", "lion:learning_rate=0.1"))
    assert found.code == 0, found.err
    lines = found.out.splitlines()
    assert lines[0] == "on each device of cpu:2x4 (8 fsdp)"
    assert lines[2].split() == ["signsgd", "lion:learning_rate=0.1"]
    state = next(line for line in lines if line.startswith("optimizer state"))
    # A count; a moment of 6.97 million parameters, four bytes each, an eighth on each device.
    assert state.split()[2] == "<0.1" and state.split()[4] == "3.3"
    assert "compiling signsgd of tiny for cpu:2x4" in found.err
    assert "static estimate" in found.out


@pytest.mark.usefixtures("fake")
def test_json_is_all_that_is_printed(command: Any) -> None:
    found = command(
        "preflight", "--model", "tiny", "--topology", "2xcpu:2x2", "--mesh", "2x2", "--method",
        "lion", "-p", "b1=0.8", "--dtype", "bfloat16", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert told["mesh"] == {"slice": 2, "fsdp": 2, "tensor": 2}
    assert told["compiles"] and told["fits"]
    # 6.97 million parameters of 2 bytes; nearly all are split over 4 devices of a slice.
    assert told["bytes"]["parameters"] == pytest.approx(6966784 * 2 / 4, rel=0.05)
    assert told["collectives"] == []


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--topology", "v7x:2x2x1"), "unknown topology 'v7x:2x2x1' (did you mean 'tpu7x'?)"),
        (("--model", "gpt2-smal"), "unknown model 'gpt2-smal' (did you mean 'gpt2-small'"),
        (("--method", "mun"), "unknown method 'mun' (did you mean 'muon'"),
        (("--method", "cautious"), "cautious is a wrapper, not a complete optimizer"),
        (("--against", "lion:beta=1"), "lion has no hyperparameter 'beta'"),
        (("-p", "b9=1"), "adamw has no hyperparameter 'b9'"),
        (("--mesh", "3x4"), "12 devices; cpu:2x4 has 8"),
        (("--mesh", "fast"), "--mesh 'fast' is neither sizes such as 4x4 nor"),
        (("--layout", "zero"), "unknown layout 'zero'; known: fsdp, fsdp+tensor, replicated"),
        (("--layout", "fsdp+tensor"), "splits over 2 mesh axes"),
        (("--dtype", "float99"), "data type 'float99' not understood"),
    ],
)
def test_mistakes_are_one_line(command: Any, more: tuple[str, ...], message: str) -> None:
    found = command(*words(*more))
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(("topology", "extra"), [("v5e:2x2", "tpu"), ("h100", "gpu")])
def test_a_missing_compiler_names_the_command(
    command: Any, monkeypatch: pytest.MonkeyPatch, topology: str, extra: str
) -> None:
    monkeypatch.setattr(targets, "_is_installed", lambda module: False)
    targets._devices.cache_clear()
    found = command("preflight", "--model", "tiny", "--topology", topology)
    assert found.code == 1
    assert f"pip install 'optkit[{extra}]'" in found.err


SLICE, SLICES = find_target("v5e:4x4"), find_target("2xv5e:4x4")


@pytest.mark.parametrize(
    ("text", "target", "axes"),
    [
        (None, SLICE, {"fsdp": 16}),
        (None, SLICES, {"slice": 2, "fsdp": 16}),
        ("16", SLICE, {"fsdp": 16}),
        ("4x4", SLICE, {"fsdp": 4, "tensor": 4}),
        ("4x4", SLICES, {"slice": 2, "fsdp": 4, "tensor": 4}),
        ("2x2x4", SLICE, {"data": 2, "fsdp": 2, "tensor": 4}),
        ("data=2,model=8", SLICE, {"data": 2, "model": 8}),
        ("slice=2,fsdp=16", SLICES, {"slice": 2, "fsdp": 16}),
        ("fsdp=16", SLICES, {"slice": 2, "fsdp": 16}),
    ],
)
def test_meshes(text: str | None, target: Target, axes: dict[str, int]) -> None:
    assert parse_mesh(text, target) == axes
    assert list(parse_mesh(text, target)) == list(axes)


@pytest.mark.parametrize("text", ("4x5", "", "fsdp=4,", "fsdp=4;tensor=4", "2x2x2x2"))
def test_wrong_meshes(text: str) -> None:
    with pytest.raises(CommandError, match="--mesh"):
        parse_mesh(text, SLICE)


@pytest.mark.usefixtures("fake")
@pytest.mark.slow
def test_a_whole_training_step(command: Any) -> None:
    found = command(
        "preflight", "--task", "bytelm", "--task-option", "width=32", "--method", "signsgd",
        "--topology", "cpu:2x4", "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    told = json.loads(found.out)
    assert "a training step of bytelm" in found.err
    assert told["flops"] > 0
    assert told["bytes"]["gradients"] == 0  # made inside
    # Inputs and targets of 8 sequences of 128 bytes in 4 bytes each: one sequence a device.
    assert told["bytes"]["other"] == 2 * 128 * 4
    assert {row["kind"] for row in told["collectives"]} >= {"all-reduce"}


@pytest.mark.usefixtures("fake")
def test_options_of_a_task_need_one(command: Any) -> None:
    found = command(*words("--task-option", "width=32"))
    assert found.code == 2 and "belongs to --task" in found.err
