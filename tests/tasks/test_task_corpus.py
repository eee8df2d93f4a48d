"""The text of the byte language model and its split."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from optkit import tasks
from optkit.tasks import corpus

LOW, HIGH = bytes(range(32, 64)), bytes(range(160, 192))


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def names(held_out: bool, count: int) -> list[str]:
    candidates = (f"folder/{number}.txt" for number in range(10_000))
    chosen = [name for name in candidates if corpus.is_held_out(name) == held_out]
    return chosen[:count]


def test_standard_library_is_large_real_and_split_by_file() -> None:
    text = corpus.standard_library()
    assert text.train.size > 5_000_000
    assert 0.02 < text.held_out.size / text.train.size < 0.1
    assert set(text.train_files).isdisjoint(text.held_out_files)
    assert list(text.train_files) == sorted(text.train_files)
    assert "argparse.py" in text.train_files + text.held_out_files
    assert all(corpus.is_held_out(name) for name in text.held_out_files)
    assert not any(corpus.is_held_out(name) for name in text.train_files)


@pytest.mark.parametrize("folder", ["site-packages", "test", "tests", "__pycache__", "idlelib"])
def test_standard_library_leaves_out(folder: str) -> None:
    text = corpus.standard_library()
    assert not any(folder in name.split("/") for name in text.train_files + text.held_out_files)


def test_split_is_the_same_in_another_process() -> None:
    code = "from optkit.tasks import corpus; print(*corpus.standard_library().held_out_files)"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONHASHSEED": "77",
    }
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert tuple(printed.split()) == corpus.standard_library().held_out_files


def test_training_batches_only_hold_training_bytes(tmp_path: Path) -> None:
    files = {name: LOW * 3 for name in names(False, 9)} | {
        name: HIGH * 3 for name in names(True, 3)
    }
    tiny = {"width": 8, "heads": 1, "layers": 1, "context": 16, "batch": 64}
    task = tasks.get("bytelm", text=write(tmp_path, files), **tiny)
    seen = [task.batch(seed, step) for seed in range(5) for step in range(20)]
    tokens = np.concatenate([np.stack([batch["inputs"], batch["targets"]]) for batch in seen])
    assert set(np.unique(tokens)) == set(LOW)


def test_default_batches_are_windows_of_the_training_files() -> None:
    train = corpus.standard_library().train.tobytes()
    batch = tasks.get("bytelm").batch(0, 0)
    for inputs, targets in zip(batch["inputs"], batch["targets"], strict=True):
        window = bytes(inputs.astype(np.uint8)) + bytes(targets[-1:].astype(np.uint8))
        assert window[1:] == bytes(targets.astype(np.uint8))
        assert window in train


def test_user_directory_is_split_by_whole_files(tmp_path: Path) -> None:
    files = {name: name.encode() * 9 for name in names(False, 6) + names(True, 2)}
    text = corpus.user_text(write(tmp_path, files | {".hidden": b"x", "blob.bin": b"\0\1"}))
    assert set(text.train_files) == set(names(False, 6))
    assert set(text.held_out_files) == set(names(True, 2))
    assert text.held_out.tobytes() == b"".join(files[name] for name in sorted(names(True, 2)))


@pytest.mark.parametrize("held_out", [False, True])
def test_both_parts_get_files_when_the_hash_takes_one_side(tmp_path: Path, held_out: bool) -> None:
    text = corpus.user_text(write(tmp_path, {name: b"text" for name in names(held_out, 3)}))
    assert len(text.held_out_files) == 1 and len(text.train_files) == 2


def test_user_file_holds_out_its_end(tmp_path: Path) -> None:
    data = bytes(np.random.default_rng(0).integers(1, 256, 2000, dtype=np.uint8))
    text = corpus.user_text(write(tmp_path, {"one.txt": data}) / "one.txt")
    assert text.train.tobytes() + text.held_out.tobytes() == data
    assert text.held_out.size == 100


def test_python_folders_of_the_user_are_read(tmp_path: Path) -> None:
    text = corpus.user_text(write(tmp_path, {"tests/a.py": b"a", "test/b.py": b"b"}))
    assert len(text.train_files + text.held_out_files) == 2


def test_empty_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(tasks.TaskOptionError, match="holds no text"):
        tasks.get("bytelm", text=tmp_path)


def test_short_text_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, {"one.txt": b"short text " * 30}) / "one.txt"
    with pytest.raises(tasks.TaskOptionError, match="held-out text has 16 bytes, too few for"):
        tasks.get("bytelm", text=str(path), context=16)
