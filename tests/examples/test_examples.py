"""Each example runs as a program, prints something, and stays short."""

import os
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))
# Those that a reader tries first.
QUICK = {"quickstart", "resume", "routing", "sharded"}


def _marks(name: str) -> list[pytest.MarkDecorator]:
    slow = [pytest.mark.slow, pytest.mark.sweep] * (name not in QUICK)
    return slow + [pytest.mark.multiprocess] * ("host" in name)


PROGRAMS = [pytest.param(file, id=file.stem, marks=_marks(file.stem)) for file in FILES]


@pytest.mark.parametrize("file", PROGRAMS)
def test_example_runs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(file)])
    monkeypatch.setenv("OPTKIT_EXAMPLE_STEPS", "24")  # for those that train longer by themselves
    before = dict(os.environ)
    # The examples assert what they show.
    runpy.run_path(str(file), run_name="__main__")
    assert capfd.readouterr().out.strip()
    assert not list(tmp_path.iterdir()), "an example leaves files behind"
    # The imports of scikit-learn and gymnasium set variables for OpenMP and pygame.
    kept = [
        {name: value for name, value in held.items() if not name.startswith(("KMP_", "PYGAME_"))}
        for held in (before, dict(os.environ))
    ]
    assert kept[0] == kept[1], "an example changes the environment where it need not"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_example_is_short(file: Path) -> None:
    longest = 80 if "host" in file.stem else 60  # they start their processes themselves
    assert len(file.read_text(encoding="utf-8").splitlines()) < longest


def test_examples_are_found() -> None:
    assert {file.stem for file in FILES} >= QUICK
