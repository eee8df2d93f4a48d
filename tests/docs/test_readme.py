"""The Python blocks of the README run, in order, as one program."""

import re
from pathlib import Path

import pytest

from tests.docs.modules import ROOT

README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Returns the line number and the source of each block marked as Python."""
    return [(text.count("\n", 0, found.start(1)), found.group(1)) for found in BLOCK.finditer(text)]


def test_readme_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert blocks, "README.md shows no Python"
    monkeypatch.chdir(tmp_path)  # what an example writes stays out of the repository
    namespace: dict[str, object] = {"__name__": "readme"}
    for lines_before, source in blocks:
        # Empty lines in front make a traceback name the line of the README.
        exec(compile("\n" * lines_before + source, str(README), "exec"), namespace)


def test_blocks_keep_their_line_numbers() -> None:
    text = "# T\n```bash\nls\n```\n```python\na = 1\n```\ntext\n```python\nb = a\n```\n"
    assert python_blocks(text) == [(5, "a = 1\n"), (9, "b = a\n")]
