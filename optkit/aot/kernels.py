"""Pallas kernels of a compiled program, with the cycles that their schedules tell."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from optkit.aot.hlo import Instruction, kernel_calls


@dataclass(frozen=True)
class KernelCall:
    """A call of a Pallas kernel.

    Attributes:
      name: of its instruction.
      grid: points of its grid; None if it could not be found.
      bundles: bundles of instructions in its schedule, loops inside counted once; None if no
        schedules were written (``write_schedules``), as for GPUs.
      times: how often a run calls it.
      loops: whether it may have loops inside, whose trips the schedule does not tell.
    """

    name: str
    grid: int | None
    bundles: int | None
    times: int
    loops: bool = False

    @property
    def cycles(self) -> int | None:
        """Static cycles of one call: bundles times points of the grid; None if not known."""
        if self.loops or self.grid is None or self.bundles is None:
            return None
        return self.grid * self.bundles


def find_kernels(
    program: Iterable[Instruction],
    jaxpr: Any,
    bundles: Mapping[str, int],
    platform: str = "tpu",
) -> tuple[KernelCall, ...]:
    """Returns the kernels of a program.

    A compiled program does not tell the grid: it is that of the traced call, for the same platform,
    whose results have the same shapes; of several such calls the one with the same name.

    Args:
      program: from ``read_hlo``.
      jaxpr: what was traced.
      bundles: from ``scheduled_bundles``.
      platform: ``"tpu"`` or ``"cuda"``.

    Returns:
      One entry a call.
    """
    traced = [call for call in _traced(jaxpr) if call.platform in (platform, None)]
    lines = kernel_calls(program)
    # Of equal kernels the compiler schedules one.
    scheduled = {_code(line): bundles[line.name] for line in lines if line.name in bundles}
    return tuple(_call(line, _candidates(line, traced), scheduled) for line in lines)


def _call(
    line: Instruction, candidates: list["_Traced"], scheduled: Mapping[str, int]
) -> KernelCall:
    """One kernel; its grid only if it is known without doubt."""
    grids = {call.grid for call in candidates}
    return KernelCall(
        name=line.name,
        grid=grids.pop() if len(grids) == 1 else None,
        bundles=scheduled.get(_code(line)),
        times=line.times,
        loops=any(call.loops for call in candidates),
    )


def _candidates(line: Instruction, traced: Iterable["_Traced"]) -> list["_Traced"]:
    """The traced calls that a line may be."""
    shapes = tuple(each.shape for each in line.result)
    alike = [call for call in traced if call.shapes == shapes]
    return [call for call in alike if call.name and line.name.startswith(call.name)] or alike


def _code(line: Instruction) -> str:
    """What a kernel computes, and with which options."""
    return line.text.partition("backend_config=")[2] or line.name


class _Traced(NamedTuple):
    """A traced call: its name, what it is for (None: either), its results, grid and loops."""

    name: str
    platform: str | None
    shapes: tuple[tuple[int, ...], ...]
    grid: int | None
    loops: bool


def _traced(jaxpr: Any) -> Iterator[_Traced]:
    """Each traced kernel, those of nested programs too."""
    for equation in _equations(jaxpr, into_kernels=False):
        if equation.primitive.name != "pallas_call":
            continue
        params = equation.params
        grid = getattr(params.get("grid_mapping"), "grid", ())
        whole = all(isinstance(side, int) for side in grid)
        module = type(params.get("compiler_params")).__module__
        is_gpu = "triton" in module or "mosaic_gpu" in module
        inside = _equations(params["jaxpr"], into_kernels=True)
        yield _Traced(
            str(params.get("name") or ""),
            "cuda" if is_gpu else "tpu" if "mosaic" in module else None,
            tuple(tuple(out.aval.shape) for out in equation.outvars),
            math.prod(grid) if whole else None,
            any(each.primitive.name in ("scan", "while") for each in inside),
        )


def _equations(jaxpr: Any, *, into_kernels: bool) -> Iterator[Any]:
    """All equations, those of nested programs too."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        if equation.primitive.name == "pallas_call" and not into_kernels:
            continue
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    yield from _equations(inner, into_kernels=into_kernels)


__all__ = ["KernelCall", "find_kernels"]
