"""How often a loop of a compiled program runs."""

import re
from collections.abc import Mapping, Sequence

Line = tuple[str, str, str, str]  # name, result, opcode, and what follows the opening parenthesis

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_NAME = re.compile(r"%([\w.\-<>]+)")


def trip_count(rest: str, computations: Mapping[str, Sequence[Line]]) -> int | None:
    """Returns the trips of a loop: those the compiler wrote, or those of one that counts up.

    The TPU's compiler leaves its own number out of what it schedules. A loop that counts up starts
    from a constant, adds 1 in its body, and goes on while it is below a constant.

    Args:
      rest: what follows ``while(`` in the loop's line.
      computations: lines of each computation by its name.

    Returns:
      The number, or None if it is not known.
    """
    if found := _TRIPS.search(rest):
        return int(found[1])
    condition = _lines(rest, "condition", computations)
    body = _lines(rest, "body", computations)
    compare = next((line for line in condition.values() if line[2] == "compare"), None)
    if compare is None or "direction=LT" not in compare[3]:
        return None
    left, right = _operands(compare[3])[:2]
    limit, index = _constant(right, condition), _index(left, condition)
    if limit is None or index is None:
        return None
    last = next((line for line in reversed(body.values()) if line[2] == "tuple"), None)
    whole = {line[0]: line for lines in computations.values() for line in lines}
    start = _constant(_element(_operands(rest)[0], index, whole), whole)
    if last is None or start is None or not _counts(_operands(last[3])[index], index, body):
        return None
    return max(limit - start, 0)


def _lines(rest: str, role: str, computations: Mapping[str, Sequence[Line]]) -> dict[str, Line]:
    """The lines of a computation that a loop names, by their names."""
    found = re.search(rf"\b{role}=%?([\w.\-<>]+)", rest)
    return {line[0]: line for line in computations.get(found[1], ())} if found else {}


def _operands(rest: str) -> list[str]:
    return _NAME.findall(rest.split(")")[0])


def _constant(name: str | None, lines: Mapping[str, Line]) -> int | None:
    """The value of a constant, through copies of it."""
    line = lines.get(name or "")
    if line and line[2] == "copy":
        return _constant(_operands(line[3])[0], lines)
    found = re.match(r"-?\d+(?=\))", line[3]) if line and line[2] == "constant" else None
    return int(found[0]) if found else None


def _index(name: str, lines: Mapping[str, Line]) -> int | None:
    """Which element of the loop's tuple a name stands for, through copies of it."""
    line = lines.get(name)
    if line and line[2] == "copy":
        return _index(_operands(line[3])[0], lines)
    if line is None or line[2] != "get-tuple-element":
        return None
    found = re.search(r"\bindex=(\d+)", line[3])
    return int(found[1]) if found else None


def _element(name: str, index: int, lines: Mapping[str, Line]) -> str | None:
    line = lines.get(name)
    return _operands(line[3])[index] if line and line[2] == "tuple" else None


def _counts(name: str, index: int, body: Mapping[str, Line]) -> bool:
    """Whether a name of the body is the loop's element plus 1."""
    line = body.get(name)
    if line is None or line[2] != "add":
        return False
    left, right = _operands(line[3])[:2]
    return _index(left, body) == index and _constant(right, body) == 1


__all__ = ["trip_count"]
