"""What to change about a step, from what its compiler found."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optkit.aot.reports import Preflight

_MIB = 2**20
_SMALL = _MIB  # less than this is not worth a word


def advice(found: "Preflight") -> tuple[str, ...]:
    """Returns what to change, most pressing first.

    Args:
      found: a preflight.

    Returns:
      Sentences; none if nothing stands out.
    """
    return (*_memory(found), *_exchanges(found), *_unknown(found))


def _memory(found: "Preflight") -> Iterator[str]:
    memory = found.memory
    if memory.total > memory.limit:
        what = "are needed" if found.compiles else "are needed for the arguments alone"
        yield (
            f"does not fit: {_mib(memory.total)} {what} and a device has {_mib(memory.limit)}; "
            "split parameters and state over more devices, or store them in fewer bytes"
        )
    if memory.fresh > max(_SMALL, 0.1 * memory.results):
        yield (
            f"{_mib(memory.fresh)} of results lie beside the arguments that they replace: donate "
            "state and parameters, and return them in the order of the arguments"
        )
    if memory.temporaries > max(memory.limit / 64, memory.parameters + memory.state):
        yield (
            f"temporaries of {_mib(memory.temporaries)} are more than parameters and state: batch "
            "fewer matrices at once (group_bytes= of matrix methods), or shard what is gathered"
        )
    if memory.replicated_state > max(_SMALL, 0.1 * memory.state):
        yield (
            f"{_mib(memory.replicated_state)} of optimizer state are whole on each of "
            f"{found.target.size} devices: split the parameters over a mesh axis, and place state "
            "with optkit.state_sharding"
        )


def _exchanges(found: "Preflight") -> Iterator[str]:
    sharded = found.memory.parameters + found.memory.gradients
    # A step that makes its gradients exchanges activations and parameters for that.
    update_alone = found.memory.gradients > 0
    rows = found.exchanges()
    slow = found.target.chip.links[1]
    for row in rows:
        size = row["wire_bytes"]
        heavy = update_alone and size > max(_SMALL, sharded)
        plural = "" if row["count"] == 1 else "s"
        axes = ", ".join(row["axes"]) or "the mesh"
        if row["link"] != slow and heavy and row["kind"] == "all-gather":
            yield (
                f"{row['count']} all-gather{plural} over {axes} send {_mib(size)}, more than "
                "parameters and gradients: let optkit shard the layer axis, so that whole matrices "
                "move to single devices and back (stacked kernels, or equal ones in one group); on "
                "several Auto axes say how leaves are cut: optkit.tree.MatrixSharding(specs=...)"
            )
        elif row["link"] != slow and heavy and row["kind"] == "all-reduce":
            yield (
                f"{row['count']} all-reduce{plural} over {axes} send {_mib(size)}, more than "
                "parameters and gradients: matrices are multiplied in parts; whole ones on single "
                "devices need none"
            )
    crossing = sum(row["wire_bytes"] for row in rows if row["link"] == slow)
    if crossing > _SMALL:
        yield (
            f"{_mib(crossing)} leave the slice or host over {slow}: keep copies of parameters on "
            "each, split over the axes inside only, or exchange every so many steps"
        )


def _unknown(found: "Preflight") -> Iterator[str]:
    if not found.axes and found.target.size > 1:
        yield (
            f"no argument carries a sharding: one of {found.target.size} devices does all the work"
        )
    if found.unknown_trips:
        yield "a loop has trips that the compiler does not know: its work counts once"
    if any(each.conditional for each in found.collectives):
        yield "some collectives stand in a branch, and count as if each branch ran in each step"
    if blind := sum(kernel.flops is None for kernel in found.kernels):
        yield (
            f"products inside of {blind} Pallas kernel{'' if blind == 1 else 's'} are not counted: "
            "the bound of the matrix units is too low"
        )
    if found.kernel_cycles is not None or found.target.chip.platform != "tpu":
        return
    for kernel in found.kernels:
        if kernel.bundles is not None and kernel.cycles is None:
            reason = kernel.reason or "a schedule shows a loop once"
            yield f"cycles of the Pallas kernel {kernel.name} are not known: {reason}"
    if any(kernel.bundles is None for kernel in found.kernels):
        yield (
            "cycles of Pallas kernels are not known: optkit preflight --kernel-cycles counts them, "
            "as does optkit.aot.write_schedules() before the compiler is first used"
        )


def _mib(size: float) -> str:
    return f"{size / _MIB:,.1f} MiB"


__all__ = ["advice"]
