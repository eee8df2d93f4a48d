"""What a preflight found: numbers of a step on each device, and what follows from them."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from optkit.aot.advice import advice
from optkit.aot.collectives import Collective
from optkit.aot.kernels import KernelCall
from optkit.aot.targets import Target

ESTIMATE = "the compiler's static estimate"


@dataclass(frozen=True)
class Memory:
    """Bytes of a compiled step on each device.

    Attributes:
      parameters: of the arguments that are parameters.
      gradients: of those that are gradients.
      state: of the optimizer state.
      other: of all other arguments.
      padding: what the device's tiles add to the arguments.
      results: of the results.
      reused: of the results that take the memory of donated arguments.
      temporaries: of what lives during the step only.
      program: of the program.
      replicated_state: of state leaves of more than 1024 entries that are whole on each device.
      limit: of the device's memory.
    """

    parameters: int = 0
    gradients: int = 0
    state: int = 0
    other: int = 0
    padding: int = 0
    results: int = 0
    reused: int = 0
    temporaries: int = 0
    program: int = 0
    replicated_state: int = 0
    limit: int = 0

    @property
    def arguments(self) -> int:
        """Of all arguments with their padding."""
        return self.parameters + self.gradients + self.state + self.other + self.padding

    @property
    def fresh(self) -> int:
        """Of the results that need memory of their own."""
        return max(self.results - self.reused, 0)

    @property
    def total(self) -> int:
        """Of everything: what has to fit."""
        return self.arguments + self.fresh + self.temporaries + self.program


@dataclass(frozen=True)
class Preflight:
    """What a step costs on a device of a topology; ``print`` it or read its fields.

    Attributes:
      name: what it was called.
      topology: what it was compiled for.
      target: the same with the public numbers of its chip.
      axes: sizes of the mesh axes by name; empty on one device.
      memory: bytes on each device.
      error: why the compiler refused it, or None.
      collectives: each exchange between devices.
      flops: floating-point operations of matrix products, Pallas kernels left out (these are
        ``kernel_flops``).
      accessed: bytes that operations read and write, on the chip's memory too, as the compiler
        counts them, loops once; None for GPUs.
      cycles: the compiler's static estimate of computation and copies, without collectives and
        Pallas kernels; None for GPUs, whose compiler writes none.
      kernels: calls of Pallas kernels.
      unknown_trips: whether a loop has trips that the compiler does not know; it counts once.
      seconds: that compiling took.
    """

    name: str
    topology: str
    target: Target
    axes: dict[str, int]
    memory: Memory
    error: str | None = None
    collectives: tuple[Collective, ...] = ()
    flops: int = 0
    accessed: int | None = None
    cycles: int | None = None
    kernels: tuple[KernelCall, ...] = ()
    unknown_trips: bool = False
    seconds: float = field(default=0.0, compare=False)

    @property
    def compiles(self) -> bool:
        """Whether the compiler took it."""
        return self.error is None

    @property
    def fits(self) -> bool:
        """Whether it compiles and fits the device's memory."""
        return self.compiles and self.memory.total <= self.memory.limit

    @property
    def kernel_cycles(self) -> int | None:
        """Static cycles of all Pallas kernels, or None if those of one are not known."""
        cycles = [(kernel.cycles, kernel.times) for kernel in self.kernels]
        if any(own is None for own, _ in cycles):
            return None
        return sum((own or 0) * times for own, times in cycles)

    @property
    def kernel_flops(self) -> int:
        """Floating-point operations of matrix products in Pallas kernels, where they are known."""
        return sum((kernel.flops or 0) * kernel.times for kernel in self.kernels)

    def wire_bytes(self, *, between_slices: bool) -> float:
        """Returns what a device sends in a step.

        Args:
          between_slices: to other slices or hosts, or inside its own.

        Returns:
          Bytes, by ring formulas.
        """
        return sum(
            each.wire_bytes * each.times
            for each in self.collectives
            if each.between_slices == between_slices
        )

    @property
    def bounds(self) -> dict[str, float | None]:
        """Seconds that no run can go below: work divided by the peak numbers of the chip.

        Matrix products in bfloat16, arguments read and results written once, bytes on each kind of
        link; None where the link's speed is not public.
        """
        chip = self.target.chip
        moved = self.memory.arguments + self.memory.results
        fast, slow = (self.wire_bytes(between_slices=between) for between in (False, True))
        out = {
            "matrix units": (self.flops + self.kernel_flops) / chip.flops,
            "memory": moved / chip.memory_bandwidth,
            chip.links[0]: fast / chip.link_bandwidth,
        }
        if slow:
            speed = chip.network_bandwidth
            return {**out, chip.links[1]: None if speed is None else slow / speed}
        return {**out}

    @property
    def dominant(self) -> str:
        """Which of the bounds is largest."""
        return max(self.bounds, key=lambda name: self.bounds[name] or 0.0)

    @property
    def advice(self) -> tuple[str, ...]:
        """What to change."""
        return advice(self)

    def exchanges(self) -> list[dict[str, Any]]:
        """Returns the collectives, those alike in one row.

        Returns:
          Rows with kind, count, mesh axes, devices in a group, link, bytes of results and bytes
          that a device sends, the most sent first.
        """
        rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        for each in self.collectives:
            link = self.target.chip.links[int(each.between_slices)]
            key = (each.kind, each.axes, each.group_size, link)
            row = rows.setdefault(
                key,
                {"kind": each.kind, "count": 0, "axes": list(each.axes), "group": each.group_size}
                | {"link": link, "result_bytes": 0, "wire_bytes": 0.0},
            )
            row["count"] += each.times
            row["result_bytes"] += each.bytes * each.times
            row["wire_bytes"] += each.wire_bytes * each.times
        return sorted(rows.values(), key=lambda row: -row["wire_bytes"])

    def json(self) -> str:
        """Returns everything as JSON.

        Returns:
          The text of one object; its numbers are bytes, seconds and counts of a device.
        """
        memory = dataclasses.asdict(self.memory)
        kernels = [
            {**dataclasses.asdict(kernel), "cycles": kernel.cycles} for kernel in self.kernels
        ]
        out = {
            "name": self.name,
            "topology": self.topology,
            "devices": self.target.size,
            "mesh": self.axes,
            "compiles": self.compiles,
            "error": self.error,
            "fits": self.fits,
            "bytes": {**memory, "total": self.memory.total},
            "collectives": self.exchanges(),
            "flops": self.flops,
            "kernel_flops": self.kernel_flops,
            "bytes_accessed": self.accessed,
            "estimated_cycles": self.cycles,
            "kernels": kernels,
            "lower_bounds_seconds": self.bounds,
            "dominant": self.dominant,
            "advice": list(self.advice),
            "compile_seconds": round(self.seconds, 2),
            "remark": f"cycles are {ESTIMATE}; nothing was run",
        }
        return json.dumps(out, indent=1)

    def __str__(self) -> str:
        from optkit.aot.comparing import compare  # which is made of preflights

        return str(compare(self))


__all__ = ["ESTIMATE", "Memory", "Preflight"]
