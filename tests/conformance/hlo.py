"""Reads the collectives of a compiled program."""

import collections
import math
import re
from typing import Any

NAMES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
# The result stands between "=" and the name; that of an all-to-all is a tuple.
_LINE = re.compile(rf"= (?P<result>.*?) (?P<name>{'|'.join(NAMES)})(?:-start)?\(")
_SHAPE = re.compile(r"\[([\d,]*)\]")


def collectives(compiled: Any, *, scalars: bool = False) -> dict[str, int]:
    """Counts the collectives by name; all-reduces of scalars only count if asked for.

    A combined all-reduce whose results are all scalars is one of scalars.
    """
    out: collections.Counter = collections.Counter()
    for line in compiled.as_text().splitlines():
        found = _LINE.search(line)
        if not found:
            continue
        sizes = [
            math.prod(int(n) for n in shape.split(",") if n)
            for shape in _SHAPE.findall(found["result"])
        ]
        small = found["name"] == "all-reduce" and all(size == 1 for size in sizes)
        if scalars or not small:
            out[found["name"]] += 1
    return dict(out)


_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_TYPED = re.compile(r"(\w+)\[([\d,]*)\]")
# Of the bytes of its result each device sends this share, by algorithms that send the least.
_SENT = {
    "all-reduce": lambda n: 2.0 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: float(n - 1),
    "collective-permute": lambda n: 1.0,
}


def sent_bytes(compiled: Any, devices: int) -> float:
    """Bytes that each of so many devices sends in a compiled program without branches or loops."""
    total = 0.0
    for line in compiled.as_text().splitlines():
        if found := _LINE.search(line):
            size = sum(
                _BYTES[kind] * math.prod(int(n) for n in shape.split(",") if n)
                for kind, shape in _TYPED.findall(found["result"])
            )
            total += _SENT[found["name"]](devices) * size
    return total
