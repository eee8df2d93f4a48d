"""Which devices exchange with which: the ways in which a compiled program writes it."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

Groups = tuple[tuple[int, ...], ...]

_PAIRS = re.compile(r"source_target_pairs=\{(?P<pairs>(?:\{\d+,\d+\},?)*)\}")
_LISTS = re.compile(r"replica_groups=\{(?P<lists>(?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(
    r"replica_groups=\[(?P<shape>[\d,]+)\]<=\[(?P<from>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
)
_MESH = re.compile(
    r"replica_groups=mesh\[(?P<axes>[^\]]*)\](?:, ?device_ids=\((?P<ids>.*?)\))?"
    r" \{(?P<over>[^}]*)\}"
)
_IDS = re.compile(r"\[(?P<from>[\d,]+)\](?:T\((?P<order>[\d,]+)\)?)?")
_AXIS = re.compile(r"'([^']+)'(?:=(\d+))?(?::\((\d+)\)(\d+))?")


def read_groups(text: str, devices: int) -> Groups:
    """Reads which devices take part in a collective together.

    Args:
      text: attributes of its instruction: ``replica_groups`` as lists, as an iota or over the axes
        of a mesh, or ``source_target_pairs``; nothing, or an empty list, is all devices.
      devices: how many the program runs on.

    Returns:
      Groups of device numbers; of pairs, each is a group of source and target.

    Raises:
      ValueError: the text has groups in a form that is not known.

    Example:
      >>> read_groups("replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}", 4)
      ((0, 2), (1, 3))
      >>> read_groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, dimensions={0}", 4)
      ((0, 1), (2, 3))
    """
    if found := _PAIRS.search(text) or _LISTS.search(text):
        lists = re.findall(r"\{([\d,]*)\}", found[1])
        groups = tuple(_numbers(each) for each in lists if each)
        return groups or (tuple(range(devices)),)
    if found := _IOTA.search(text):
        return _tuples(_iota(found["from"], found["order"]).reshape(_numbers(found["shape"])))
    if found := _MESH.search(text):
        return _over_mesh(found["axes"], found["ids"], found["over"])
    if "replica_groups=" in text and "replica_groups={}" not in text:
        raise ValueError(f"unknown form of replica groups in {text[:200]!r}")
    return (tuple(range(devices)),)


def _over_mesh(axes: str, ids: str | None, over: str) -> Groups:
    """Groups over some axes of a mesh; ``'a':(2)4`` is a part of one, 4 after the first 2."""
    sizes = {name: int(size) for name, size, _, _ in _AXIS.findall(axes)}
    wanted = {name: (before, part) for name, _, before, part in _AXIS.findall(over)}
    numbers = np.arange(math.prod(sizes.values()))
    if ids:
        found = _IDS.match(ids)
        numbers = (
            _iota(found["from"], found["order"]) if found else np.array(_numbers(ids), dtype=int)
        )
    parts: list[int] = []  # of a split axis three: before the part that is meant, it, and after it
    within: list[int] = []
    for name, size in sizes.items():
        before, part = (int(word or 0) for word in wanted.get(name, ("", "")))
        if name in wanted:
            within.append(len(parts) + (1 if part else 0))
        parts += [before, part, size // (before * part)] if part else [size]
    without = [number for number in range(len(parts)) if number not in within]
    members = math.prod(parts[number] for number in within)
    grid = numbers.reshape(parts)
    return _tuples(grid.transpose([*without, *within]).reshape(-1, members))


def axes_of(groups: Groups, axes: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes along which the members of a group differ.

    Args:
      groups: from ``read_groups``.
      axes: sizes of the mesh axes by name, in order; devices are numbered in the mesh's order.

    Returns:
      Names of axes, in the mesh's order; none if the groups are of other devices.

    Example:
      >>> axes_of(((0, 2), (1, 3)), {"data": 2, "model": 2})
      ('data',)
    """
    sizes = tuple(axes.values())
    members = [number for group in groups for number in group]
    if not sizes or not members or max(members) >= math.prod(sizes):
        return ()
    differ = np.zeros(len(sizes), bool)
    for group in groups:
        places = np.array(np.unravel_index(group, sizes))
        differ |= (places != places[:, :1]).any(axis=1)
    return tuple(name for name, yes in zip(axes, differ, strict=True) if yes)


def is_between(groups: Groups, slice_of: Sequence[int]) -> bool:
    """Returns whether a group has members in several slices.

    Args:
      groups: from ``read_groups``.
      slice_of: the slice or host of each device.

    Returns:
      The answer.
    """
    return any(len({slice_of[number] for number in group}) > 1 for group in groups)


def _iota(sizes: str, order: str | None) -> np.ndarray:
    grid = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
    return (grid.transpose(_numbers(order)) if order else grid).reshape(-1)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _tuples(rows: Iterable[Iterable[int]]) -> Groups:
    return tuple(tuple(int(number) for number in row) for row in rows)


__all__ = ["Groups", "axes_of", "is_between", "read_groups"]
