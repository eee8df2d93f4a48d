"""Text found on this machine, split into training and held-out files."""

import functools
import os
import sysconfig
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optkit.tasks.base import TaskOptionError

# What differs from machine to machine, or came and went between Python versions.
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "lib2to3"}
)
_HELD_OUT_ONE_IN = 20


@dataclass(frozen=True)
class Corpus:
    """Text split into training and held-out bytes.

    Attributes:
      train: uint8 (bytes,), training files joined in order of their names.
      held_out: uint8 (bytes,), held-out files joined the same way.
      train_files: names relative to the root, in order.
      held_out_files: names relative to the root, in order; shares none with `train_files`.
    """

    train: np.ndarray
    held_out: np.ndarray
    train_files: tuple[str, ...]
    held_out_files: tuple[str, ...]


def is_held_out(name: str) -> bool:
    """Tells whether a file is held out: about one in twenty, the same on every machine.

    Args:
      name: path relative to the corpus root, with forward slashes.

    Example:
      >>> sum(is_held_out(f"{number}.txt") for number in range(1000))
      39
    """
    # Not Python's hash(), which differs from process to process.
    return zlib.crc32(name.encode()) % _HELD_OUT_ONE_IN == 0


@functools.cache
def standard_library(*, top_level: bool = False) -> Corpus:
    """Returns the sources of Python's standard library, without tests and installed packages.

    Args:
      top_level: only modules that are in no package: four of ten megabytes, without tables of
        encodings and generated documentation.

    Raises:
      TaskOptionError: if this Python came without sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = _read(root, ".py", _SKIPPED)
    if top_level:
        files = {name: data for name, data in files.items() if "/" not in name}
    if not files:
        raise TaskOptionError(f"no Python sources under {str(root)!r}; give a file with text=PATH")
    return _split(files)


def user_text(path: Path) -> Corpus:
    """Returns the text of a file, or of all text files below a directory.

    Of a single file the last twentieth is held out, of a directory whole files, at least one.

    Args:
      path: file or directory. Hidden files and files with zero bytes (not text) are left out.

    Raises:
      TaskOptionError: if there is no such path, or no text in it.
    """
    if path.is_file():
        files = {path.name: path.read_bytes()}
    elif path.is_dir():
        files = {name: data for name, data in _read(path).items() if b"\0" not in data}
    else:
        raise TaskOptionError(f"text={str(path)!r} does not exist; give a file or a directory")
    files = {name: data for name, data in files.items() if data}
    if not files:
        raise TaskOptionError(
            f"text={str(path)!r} holds no text; give a file or directory with some"
        )
    return _split_one(*files.popitem()) if len(files) == 1 else _split(files)


def _read(root: Path, suffix: str = "", skipped: frozenset[str] = frozenset()) -> dict[str, bytes]:
    found = {}
    for folder, folders, names in os.walk(root):
        # Pruned in place: a walk through installed packages would take seconds.
        folders[:] = [name for name in folders if name not in skipped and not name.startswith(".")]
        for name in names:
            path = Path(folder, name)
            if name.endswith(suffix) and not name.startswith(".") and path.is_file():
                found[path.relative_to(root).as_posix()] = path.read_bytes()
    return dict(sorted(found.items()))


def _split(files: dict[str, bytes]) -> Corpus:
    held_out = {name for name in files if is_held_out(name)}
    if not held_out or len(held_out) == len(files):
        held_out = {min(files, key=lambda name: zlib.crc32(name.encode()))}
    train = [name for name in files if name not in held_out]
    rest = [name for name in files if name in held_out]
    return Corpus(_join(files, train), _join(files, rest), tuple(train), tuple(rest))


def _split_one(name: str, data: bytes) -> Corpus:
    cut = len(data) - len(data) // _HELD_OUT_ONE_IN
    both = np.frombuffer(data, np.uint8)
    return Corpus(both[:cut], both[cut:], (f"{name}[:{cut}]",), (f"{name}[{cut}:]",))


def _join(files: dict[str, bytes], names: list[str]) -> np.ndarray:
    return np.frombuffer(b"".join(files[name] for name in names), np.uint8)
