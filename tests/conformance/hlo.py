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
