"""Reads the text of a compiled program: its instructions, and how often each one runs."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from optkit.aot.loops import trip_count

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*\{\s*$")
# The result is a typed shape, or a tuple of them, whose layouts have parentheses of their own.
_LINE = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>\S+) = (?P<result>\(.*?\)|\S+) "
    r"(?P<opcode>[a-z][\w-]*)\((?P<rest>.*)$"
)
_CALLED = re.compile(
    r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-<>]+)"
)
_BRANCHES = re.compile(r"\b(?:branch|called)_computations=\{([^}]*)\}")
_TYPED = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SENTINEL = 2**50  # values near 2^60 stand for "not known"
_KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call", "mosaic_gpu")
_BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}


@dataclass(frozen=True)
class Typed:
    """A typed shape of a program.

    Attributes:
      dtype: as XLA writes it, such as ``"bf16"``.
      shape: on a device.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its bytes before it is padded to tiles."""
        return math.ceil(math.prod(self.shape) * _bits(self.dtype) / 8)

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class Instruction:
    """A line of a program.

    Attributes:
      name: its name, unique in the program.
      opcode: what it does, such as ``"all-gather-start"``.
      result: typed shapes of its result; those of a tuple in order.
      text: the rest of the line: operands and attributes.
      times: how often a run of the program runs it: trips of the loops around it, multiplied.
      conditional: whether it stands in a branch, so that it may not run.
      endless: whether a loop around it has a number of trips that the compiler does not know; it
        counts as one.
    """

    name: str
    opcode: str
    result: tuple[Typed, ...]
    text: str
    times: int = 1
    conditional: bool = False
    endless: bool = False

    @property
    def cycles(self) -> int | None:
        """The compiler's static estimate of its cycles, if it wrote one."""
        found = _CYCLES.search(self.text)
        return int(found[1]) if found and int(found[1]) < _SENTINEL else None


@dataclass(frozen=True)
class _Call:
    """How a computation is run: from where, and how often for each of the caller's runs."""

    caller: str
    times: int = 1
    conditional: bool = False
    endless: bool = False


def typed_shapes(text: str) -> tuple[Typed, ...]:
    """Returns the typed shapes in a text.

    Args:
      text: such as the result of an instruction.

    Returns:
      All of them in order.

    Example:
      >>> [str(each) for each in typed_shapes("(bf16[4,2]{1,0:T(8,128)}, u32[], token[])")]
      ['bf16[4,2]', 'u32[]', 'token[]']
    """
    return tuple(
        Typed(kind, tuple(int(n.lstrip("<=")) for n in size.split(",") if n))
        for kind, size in _TYPED.findall(text)
    )


def read_hlo(text: str) -> list[Instruction]:
    """Reads a compiled program.

    Args:
      text: ``compiled.as_text()``.

    Returns:
      Its instructions, those of fusions too, in the order of the text. Computations that nothing
      calls are left out.

    Example:
      >>> program = '''
      ... %body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
      ...   %s = f32[8]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
      ... }
      ... ENTRY %main (a: f32[8]) -> f32[8] {
      ...   %w = (s32[], f32[8]) while(%t), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"5"}}
      ... }'''
      >>> [(line.opcode, line.times) for line in read_hlo(program)]
      [('all-reduce', 5), ('while', 1)]
    """
    computations: dict[str, list[tuple[str, str, str, str]]] = {}
    entry = name = ""
    for line in text.splitlines():
        if not line.startswith((" ", "\t")):
            if head := _HEAD.match(line):
                name = head["name"]
                computations[name] = []
                entry = name if head["entry"] else entry
        elif name and (found := _LINE.match(line)):
            computations[name].append((found[1], found[2], found[3], found[4]))
    runs = _runs(_calls(computations), entry)
    out = []
    for name, lines in computations.items():
        if name in runs:
            times, conditional, endless = runs[name]
            out += [
                Instruction(own, opcode, typed_shapes(result), rest, times, conditional, endless)
                for own, result, opcode, rest in lines
            ]
    return out


def _calls(computations: dict[str, list[tuple[str, str, str, str]]]) -> dict[str, list[_Call]]:
    """Says of each computation what runs it."""
    out: dict[str, list[_Call]] = {}
    for caller, lines in computations.items():
        for _, _, opcode, rest in lines:
            trips = trip_count(rest, computations) if opcode == "while" else None
            for role, called in _CALLED.findall(rest):
                loop = opcode == "while" and role in ("body", "condition")
                call = _Call(
                    caller,
                    trips if loop and trips is not None else 1,
                    role.endswith("_computation"),
                    loop and trips is None,
                )
                out.setdefault(called, []).append(call)
            for names in _BRANCHES.findall(rest):
                for called in re.findall(r"%?([\w.\-<>]+)", names):
                    call = _Call(caller, conditional=opcode == "conditional")
                    out.setdefault(called, []).append(call)
    return out


def _runs(calls: dict[str, list[_Call]], entry: str) -> dict[str, tuple[int, bool, bool]]:
    """Says of each computation that runs: how often, whether in a branch, in an endless loop."""
    found: dict[str, tuple[int, bool, bool] | None] = {entry: (1, False, False)}

    def look(name: str) -> tuple[int, bool, bool] | None:
        if name not in found:
            found[name] = None  # a computation cannot call itself
            ways = [(call, look(call.caller)) for call in calls.get(name, [])]
            live = [(call, way) for call, way in ways if way is not None]
            if live:
                found[name] = (
                    sum(call.times * way[0] for call, way in live),
                    all(call.conditional or way[1] for call, way in live),
                    any(call.endless or way[2] for call, way in live),
                )
        return found[name]

    return {name: way for name in (entry, *calls) if (way := look(name)) is not None}


def estimated_cycles(program: Iterable[Instruction]) -> int:
    """Returns the compiler's static estimate of the cycles of computation and copies.

    It holds neither collectives nor Pallas kernels, for which the compiler writes none; loops count
    with their trips.

    Args:
      program: from ``read_hlo``.

    Returns:
      Cycles of a device.
    """
    return sum(line.times * (line.cycles or 0) for line in program)


def kernel_calls(program: Iterable[Instruction]) -> list[Instruction]:
    """Returns the calls of Pallas kernels.

    Args:
      program: from ``read_hlo``.

    Returns:
      Their instructions.
    """
    return [
        line
        for line in program
        if line.opcode == "custom-call"
        and any(f'custom_call_target="{kernel}' in line.text for kernel in _KERNELS)
    ]


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    found = re.match(r"[a-z]+(\d+)", dtype)
    return int(found[1]) if found else 0


__all__ = [
    "Instruction",
    "Typed",
    "estimated_cycles",
    "kernel_calls",
    "read_hlo",
    "typed_shapes",
]
