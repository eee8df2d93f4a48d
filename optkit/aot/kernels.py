"""Pallas kernels of a compiled program, with the cycles that their schedules tell."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from optkit._jaxprs import opened
from optkit.aot.hlo import Instruction, kernel_calls
from optkit.aot.schedules import Schedule, Span, size
from optkit.aot.trips import Loop, Work, bodies, kernel_work


@dataclass(frozen=True)
class KernelCall:
    """A call of a Pallas kernel.

    Attributes:
      name: of its instruction.
      grid: points of its grid; None if it could not be found.
      bundles: bundles of instructions in its schedule, loops inside counted once; None if no
        schedules were written (``write_schedules``), as for GPUs.
      times: how often a run calls it.
      loops: whether it has loops inside, whose trips the schedule does not tell.
      weighed: bundles of a call with each loop by its trips; None if these are not known.
      flops: of the matrix products of a call; None if they are not known.
      reason: why its cycles are not known although there is a schedule; else empty.
    """

    name: str
    grid: int | None
    bundles: int | None
    times: int
    loops: bool = False
    weighed: int | None = None
    flops: int | None = None
    reason: str = ""

    @property
    def cycles(self) -> int | None:
        """Static cycles of one call; None if not known.

        Bundles times points of the grid, or with each loop's bundles times its trips.
        """
        if self.loops:
            return self.weighed
        if self.grid is None or self.bundles is None:
            return None
        return self.grid * self.bundles


def find_kernels(
    program: Iterable[Instruction],
    jaxpr: Any,
    bundles: Mapping[str, Schedule],
    platform: str = "tpu",
    flops_per_cycle: int | None = None,
) -> tuple[KernelCall, ...]:
    """Returns the kernels of a program.

    A compiled program tells neither the grid nor the trips of loops inside: they are those of the
    traced call, for the same platform, whose results have the same shapes; of several such calls
    the one with the same name. Loops of the schedule are those of the traced call in their order
    and nesting; where these do not agree, cycles are not known.

    Args:
      program: from ``read_hlo``.
      jaxpr: what was traced.
      bundles: from ``schedules``.
      platform: ``"tpu"`` or ``"cuda"``.
      flops_per_cycle: of the matrix units: a loop with more products than they can do in the cycles
        of its bundles takes as long as they need. None leaves that out.

    Returns:
      One entry a call.
    """
    lines = kernel_calls(program)
    traced = _traced(jaxpr, platform) if lines else []
    # Of equal kernels the compiler schedules one.
    scheduled = {_code(line): bundles[line.name] for line in lines if line.name in bundles}
    return tuple(
        _call(line, _candidates(line, traced), scheduled, flops_per_cycle) for line in lines
    )


def _call(
    line: Instruction,
    candidates: list["_Traced"],
    scheduled: Mapping[str, Schedule],
    flops_per_cycle: int | None,
) -> KernelCall:
    """One kernel; its grid and work only if they are known without doubt."""
    grids = {call.grid for call in candidates}
    grid = grids.pop() if len(grids) == 1 else None
    works = {call.work for call in candidates}
    work = works.pop() if len(works) == 1 else None
    found = scheduled.get(_code(line))
    loops = any(call.work is None or call.work.loops for call in candidates)
    weighed, reason = None, ""
    if found is not None and grid is None:
        reason = "its grid was not found in what was traced"
    elif found is not None and loops and work is None:
        reason = "several traced kernels may be it"
    elif found is not None and grid is not None and loops and work is not None:
        weighed, reason = _weighed(found, grid, work.loops, flops_per_cycle)
    return KernelCall(
        name=line.name,
        grid=grid,
        bundles=None if found is None else found.bundles,
        times=line.times,
        loops=loops,
        weighed=weighed,
        flops=None if work is None else work.flops,
        reason=reason,
    )


def _weighed(
    found: Schedule, grid: int, loops: Sequence[Loop], flops_per_cycle: int | None = None
) -> tuple[int | None, str]:
    """Bundles of a call, each loop's by its trips; or why they are not known."""
    around, inner = found.bundles - sum(map(size, found.loops)), found.loops
    if grid > 1:
        # The grid is a loop around all others.
        if len(inner) != 1:
            return None, f"of its schedule {len(inner)} loops stand where the grid's should"
        around, inner = around + grid * inner[0].bundles, inner[0].inner
    traced, scheduled = _shape(loops), _shape(inner)
    if traced != scheduled:
        return None, (
            f"it was written with {_count(traced)} loops inside and scheduled with "
            f"{_count(scheduled)}, or nested otherwise: which is which is not known"
        )
    total = _sum(inner, loops, flops_per_cycle)
    if total is None:
        return None, "how often a loop inside runs depends on data, and a schedule shows it once"
    return around + total, ""


def _sum(spans: Sequence[Span], loops: Sequence[Loop], flops_per_cycle: int | None) -> int | None:
    """Bundles of loops by their trips; None if a loop's trips are not known."""
    total = 0
    for span, loop in zip(spans, loops, strict=True):
        inner = _sum(span.inner, loop.inner, flops_per_cycle)
        if loop.trips is None or inner is None:
            return None
        least = loop.flops // flops_per_cycle if flops_per_cycle else 0
        total += max(span.bundles * loop.trips, least) + inner
    return total


def _shape(loops: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_shape(loop.inner) for loop in loops)


def _count(shape: tuple[Any, ...]) -> int:
    return sum(1 + _count(inner) for inner in shape)


def _candidates(line: Instruction, traced: Iterable["_Traced"]) -> list["_Traced"]:
    """The traced calls that a line may be."""
    shapes = tuple(each.shape for each in line.result)
    alike = [call for call in traced if call.shapes == shapes]
    return [call for call in alike if call.name and line.name.startswith(call.name)] or alike


def _code(line: Instruction) -> str:
    """What a kernel computes, and with which options."""
    return line.text.partition("backend_config=")[2] or line.name


class _Traced(NamedTuple):
    """A traced call: its name, its results, its grid, and what it does, if that is known."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    grid: int | None
    work: Work | None


def _traced(jaxpr: Any, platform: str) -> list[_Traced]:
    """Each traced kernel for a platform, those of nested programs too."""
    out, known = [], {}
    for equation, constants in _kernels(jaxpr, {}):
        params = equation.params
        module = type(params.get("compiler_params")).__module__
        is_gpu = "triton" in module or "mosaic_gpu" in module
        own = "cuda" if is_gpu else "tpu" if "mosaic" in module else platform
        if own != platform:
            continue
        mapping = params.get("grid_mapping")
        grid = getattr(mapping, "grid", ())
        whole = all(isinstance(each, int) for each in grid)
        key = (id(params["jaxpr"]), grid, tuple(map(id, constants)))
        if whole and key not in known:
            values = [None if each is None else np.asarray(each) for each in constants]
            known[key] = kernel_work(params["jaxpr"], grid, values)
        shapes = tuple(tuple(var.aval.shape) for var in equation.outvars)
        name = str(params.get("name") or "")
        out.append(_Traced(name, shapes, math.prod(grid) if whole else None, known.get(key)))
    return out


def _kernels(jaxpr: Any, known: Mapping[Any, Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Calls of kernels, each with those of its arguments that the program holds as constants."""
    known = dict(known)
    if hasattr(jaxpr, "consts"):
        known.update(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        given = [x.val if isinstance(x, Literal) else known.get(x) for x in equation.invars]
        if equation.primitive.name == "pallas_call":
            yield equation, given
            continue
        if equation.primitive.name == "cond":
            given = given[1:]
        for _, body in bodies(equation, closed=True):
            inner, _ = opened(body)
            fits = len(inner.invars) == len(given)
            passed = zip(inner.invars, given, strict=True) if fits else ()
            yield from _kernels(body, {var: x for var, x in passed if x is not None})


__all__ = ["KernelCall", "find_kernels"]
