"""How often the loops of a traced Pallas kernel run, and what its products multiply.

A kernel is followed point by point of its grid with what is known beforehand: lengths of loops,
numbers that count up, and arrays that the program holds as constants. What depends on data is not
known; such a branch counts as taken, unless it stands in the scope ``optkit.kernels.blocks.RARE``.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from optkit._jaxprs import opened, scan_counts
from optkit.kernels.blocks import RARE

# Beyond these a kernel is followed once, and counted as often.
_MOST_POINTS, _MOST_TRIPS = 1024, 4096

Path = tuple[int, ...]
_COUNTING: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "not": np.invert,
    "multiple_of": lambda x: x,
    "select_n": lambda which, *cases: cases[int(which)],
}


class Loop(NamedTuple):
    """A loop of a traced kernel.

    Attributes:
      trips: how often its body runs in a whole call; None if that depends on data.
      inner: the loops in its body, in the order of the program.
      flops: of matrix products in a whole call, those of inner loops apart.
    """

    trips: int | None
    inner: tuple["Loop", ...] = ()
    flops: int = 0


class Work(NamedTuple):
    """What a call of a kernel does.

    Attributes:
      loops: those that a compiler keeps as loops, in the order of the program.
      flops: floating-point operations of its matrix products; None if that depends on data.
    """

    loops: tuple[Loop, ...]
    flops: int | None


def kernel_work(jaxpr: Any, grid: Sequence[int], constants: Sequence[Any]) -> Work:
    """Returns what a kernel does in a call.

    Args:
      jaxpr: of the kernel's body.
      grid: points of each axis.
      constants: by argument of the body its entries where the program holds them, else None.

    Returns:
      Its loops with their trips, and its operations.
    """
    refs = {
        var: value for var, value in zip(jaxpr.invars, constants, strict=False) if value is not None
    }
    counted = _Count()
    points = math.prod(grid)
    if points <= _MOST_POINTS:
        for point in itertools.product(*map(range, grid)):
            _follow(jaxpr, dict(refs), 1, (), counted, point)
    else:
        _follow(jaxpr, dict(refs), points, (), counted, None)
    return Work(tuple(_loops(jaxpr, (), counted)), counted.flops)


@dataclass
class _Count:
    """Trips by the place of a loop, and operations."""

    trips: dict[Path, int | None] = field(default_factory=dict)
    flops: int | None = 0
    inside: dict[Path, int] = field(default_factory=dict)

    def add(self, path: Path, trips: int | None) -> None:
        before = self.trips.get(path, 0)
        self.trips[path] = None if trips is None or before is None else before + trips

    def multiply(self, path: Path, flops: int, weight: int | None) -> None:
        self.flops = None if weight is None or self.flops is None else self.flops + flops * weight
        loop = next((path[:i] for i in range(len(path), 0, -1) if path[:i] in self.trips), ())
        self.inside[loop] = self.inside.get(loop, 0) + flops * (weight or 0)


def bodies(equation: Any, *, closed: bool = False) -> list[tuple[int, Any]]:
    """Returns the programs in an equation, by number, in the order in which they are compiled.

    Args:
      equation: of a traced program.
      closed: with their constants, where they have such.

    Returns:
      Numbers and programs; of branches the first one, for False, comes last.
    """
    if equation.primitive.name == "cond":
        found = list(enumerate(equation.params["branches"]))
        found = found[1:] + found[:1]
    else:
        values = itertools.chain.from_iterable(
            value if isinstance(value, tuple | list) else (value,)
            for value in equation.params.values()
        )
        found = list(enumerate(x for x in values if hasattr(x, "eqns") or hasattr(x, "jaxpr")))
    return found if closed else [(i, opened(each)[0]) for i, each in found]


def _loops(jaxpr: Any, path: Path, counted: _Count) -> Iterator[Loop]:
    """The loops at the top of a program; those that a compiler writes out are left out."""
    for at, equation in enumerate(jaxpr.eqns):
        here = (*path, at)
        inner = [
            loop
            for number, body in bodies(equation)
            for loop in _loops(body, (*here, number), counted)
        ]
        own = Loop(counted.trips.get(here, 0), tuple(inner), counted.inside.get(here, 0))
        if equation.primitive.name == "while":
            yield own
        elif equation.primitive.name == "scan":
            yield from _written_out(own, **equation.params)
        else:
            yield from inner


def _written_out(loop: Loop, length: int, unroll: int, **_: Any) -> Iterator[Loop]:
    """What becomes of a loop of known length: some trips, or all, are written one by one."""
    unroll = max(unroll, 1)
    turns, rest = divmod(length, unroll)
    if turns <= 1:
        yield from _copies(loop.inner, length)
    elif loop.inner and rest:
        yield Loop(None, loop.inner)
    else:
        trips = None if loop.trips is None else loop.trips // length * turns
        yield Loop(trips, tuple(_copies(loop.inner, unroll)), loop.flops)


def _copies(loops: Sequence[Loop], count: int) -> Iterator[Loop]:
    """Loops written several times, which share their trips."""
    for copy in range(count):
        for trips, inner, flops in loops:
            own = None if trips is None else trips // count + (copy < trips % count)
            below = [*_copies(inner, count)][copy * len(inner) :][: len(inner)]
            yield Loop(own, tuple(below), flops // count)


def _follow(
    jaxpr: Any,
    known: dict[Any, Any],
    weight: int | None,
    path: Path,
    counted: _Count,
    point: Sequence[int] | None,
) -> list[Any]:
    """Counts what a program does ``weight`` times, and returns the results that are known."""

    def value(x: Any) -> Any:
        return x.val if isinstance(x, Literal) else known.get(x)

    for at, equation in enumerate(jaxpr.eqns):
        name = equation.primitive.name
        given = [value(x) for x in equation.invars]
        out: list[Any] = []
        here = (*path, at)
        if name in ("swap", "addupdate"):
            known.pop(equation.invars[0], None)
            continue
        if name == "dot_general":
            counted.multiply(here, _flops(equation), weight)
            continue
        if name == "program_id":
            out = [None if point is None else np.int32(point[equation.params["axis"]])]
        elif name == "get":
            out = [_entry(equation, given)]
        elif name in _COUNTING:
            simple = all(np.ndim(x) == 0 and x is not None for x in given)
            out = [_COUNTING[name](*given) if simple else None]
        elif name == "convert_element_type":
            simple = given[0] is not None and np.ndim(given[0]) == 0
            out = [np.asarray(given[0], equation.params["new_dtype"])[()] if simple else None]
        elif name == "scan":
            out = _follow_scan(equation, given, weight, here, counted, point)
        elif name == "while":
            out = _follow_while(equation, given, weight, here, counted, point)
        elif name == "cond":
            out = _follow_cond(equation, given, weight, here, counted, point)
        else:
            for number, body in bodies(equation):
                fits = len(body.invars) == len(given)
                inner = dict(zip(body.invars, given, strict=True)) if fits else {}
                out = _follow(body, inner, weight, (*here, number), counted, point)
        for var, found in zip(equation.outvars, out, strict=False):
            if found is not None:
                known[var] = found
    return [value(x) for x in jaxpr.outvars]


def _follow_scan(
    equation: Any, given: list[Any], weight: int | None, here: Path, counted: _Count, point: Any
) -> list[Any]:
    params = equation.params
    length, (fixed, carried) = params["length"], scan_counts(equation)
    [(number, body)] = bodies(equation)
    counted.add(here, None if weight is None else weight * length)
    constants, carry = given[:fixed], given[fixed : fixed + carried]
    deeper = (*here, number)
    if length > _MOST_TRIPS or not _decides(body):
        inner = dict(zip(body.invars, constants, strict=False))
        each = None if weight is None else weight * length
        _follow(body, inner, each, deeper, counted, point)
        return []
    for _ in range(length):
        inner = dict(zip(body.invars, [*constants, *carry], strict=False))
        carry = _follow(body, inner, weight, deeper, counted, point)[: len(carry)]
    return carry


def _follow_while(
    equation: Any, given: list[Any], weight: int | None, here: Path, counted: _Count, point: Any
) -> list[Any]:
    params = equation.params
    test, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    numbers = {id(each): number for number, each in bodies(equation)}
    split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    for_test, for_body, carry = given[: split[0]], given[split[0] : split[1]], given[split[1] :]
    for _ in range(_MOST_TRIPS):
        inner = dict(zip(test.invars, [*for_test, *carry], strict=True))
        (goes_on,) = _follow(test, inner, weight, (*here, numbers[id(test)]), counted, point)
        if goes_on is None:
            break
        if not goes_on:
            counted.add(here, 0)
            return carry
        counted.add(here, weight)
        inner = dict(zip(body.invars, [*for_body, *carry], strict=True))
        carry = _follow(body, inner, weight, (*here, numbers[id(body)]), counted, point)
    unknown = None if weight != 0 else 0
    counted.add(here, unknown)
    inner = dict(zip(body.invars, for_body, strict=False))
    _follow(body, inner, unknown, (*here, numbers[id(body)]), counted, point)
    return []


def _follow_cond(
    equation: Any, given: list[Any], weight: int | None, here: Path, counted: _Count, point: Any
) -> list[Any]:
    branches = dict(bodies(equation))
    which = given[0]
    if which is not None:
        number = min(max(int(which), 0), len(branches) - 1)
        branch = branches[number]
        inner = dict(zip(branch.invars, given[1:], strict=True))
        return _follow(branch, inner, weight, (*here, number), counted, point)
    if RARE in str(equation.source_info.name_stack).split("/"):
        weight = 0
    for number, branch in branches.items():
        inner = dict(zip(branch.invars, given[1:], strict=True))
        _follow(branch, inner, weight, (*here, number), counted, point)
    return []


def _decides(jaxpr: Any) -> bool:
    """Whether what a program does may change from one trip to the next."""
    return any(
        equation.primitive.name in ("cond", "while")
        or any(_decides(body) for _, body in bodies(equation))
        for equation in jaxpr.eqns
    )


def _entry(equation: Any, given: list[Any]) -> Any:
    """What is read from an array that is known, if it is a single entry."""
    if given[0] is None:
        return None
    where = jax.tree.unflatten(equation.params["tree"], given[1:])
    if len(where) != 1:
        return None
    indices = getattr(where[0], "indices", ())
    if len(indices) != np.ndim(given[0]) or not all(
        isinstance(i, int | np.integer | np.ndarray) and np.ndim(i) == 0 for i in indices
    ):
        return None
    return np.asarray(given[0])[tuple(int(i) for i in indices)]


def _flops(equation: Any) -> int:
    """Of a matrix product."""
    (over, _), _ = equation.params["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in over)
    return 2 * math.prod(equation.outvars[0].aval.shape) * depth


__all__ = ["Loop", "Work", "bodies", "kernel_work"]
