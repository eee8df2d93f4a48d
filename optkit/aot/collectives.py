"""The collectives of a compiled program: what each one sends, among whom, and over which links."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optkit.aot.device_groups import axes_of, is_between, read_groups
from optkit.aot.hlo import Instruction, Typed, read_hlo

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_PARTITIONS = re.compile(r"^HloModule .*\bnum_partitions=(\d+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CHAIN = re.compile(r'chain_id="(\d+)"')
_WHERE = re.compile(r'op_name="([^"]*)"')
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')
_TARGETS = re.compile(r"_xla_megascale_target=\{\{([^}]*)\}")
_TRANSFERS = {
    "ONE_TO_ONE": "collective-permute",
    "ALL_REDUCE": "all-reduce",
    "ALL_GATHER": "all-gather",
    "ALL_TO_ALL": "all-to-all",
    "REDUCE_SCATTER": "reduce-scatter",
}


@dataclass(frozen=True)
class Collective:
    """An exchange between devices.

    Attributes:
      kind: ``"all-gather"``, ``"all-reduce"``, ``"all-to-all"``, ``"reduce-scatter"``,
        ``"collective-permute"``, ``"collective-broadcast"`` or ``"ragged-all-to-all"``.
      result: typed shapes of its result on a device; what is sent, of one between slices of TPUs.
      group_size: how many devices exchange; 2 of a permute, or 1 if each keeps its own.
      axes: names of the mesh axes that it goes along.
      between_slices: whether it leaves the slice or host.
      times: how often a run does it, loops multiplied.
      conditional: whether it stands in a branch, so that it may not run.
      endless: whether it stands in a loop of which the compiler does not know the trips, which
        counts as one trip.
      where: the JAX operation that it came from.
    """

    kind: str
    result: tuple[Typed, ...]
    group_size: int
    axes: tuple[str, ...] = ()
    between_slices: bool = False
    times: int = 1
    conditional: bool = False
    endless: bool = False
    where: str = ""

    @property
    def bytes(self) -> int:
        """Bytes of its result on a device."""
        return sum(each.bytes for each in self.result)

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends each time, by ring formulas."""
        return sent_bytes(self.kind, self.bytes, self.group_size)


def sent_bytes(kind: str, size: float, members: int) -> float:
    """Returns the bytes that each member of a collective sends, by the algorithm that sends least.

    Args:
      kind: of the collective.
      size: bytes ``b`` of its result on a device.
      members: ``n`` devices.

    Returns:
      ``b (n - 1) / n`` for an all-gather or all-to-all, twice that for an all-reduce,
      ``b (n - 1)`` for a reduce-scatter, and ``b`` for the others.

    Example:
      >>> sent_bytes("all-reduce", 1024, 4)
      1536.0
    """
    if members <= 1:
        return 0.0
    share = (members - 1) / members
    if kind in ("all-gather", "all-to-all"):
        return size * share
    if kind == "all-reduce":
        return 2 * size * share
    return size * (members - 1.0) if kind == "reduce-scatter" else float(size)


def find_collectives(
    program: str | Sequence[Instruction],
    devices: int,
    *,
    axes: Mapping[str, int] | None = None,
    slice_of: Sequence[int] | None = None,
) -> list[Collective]:
    """Returns the collectives of a compiled program, each one once.

    An asynchronous collective is written several times, as the start, the middles and the end of
    what goes on beside it: the number of its chain and its channel tell that it is one. Copies in
    an unrolled loop share a channel and have chains of their own. Exchanges between slices of TPUs
    are written as sends, and are found by that.

    Args:
      program: ``compiled.as_text()``, or what ``read_hlo`` made of it.
      devices: how many the program runs on.
      axes: sizes of the mesh axes by name, in order.
      slice_of: the slice, or host, of each device in the mesh's order.

    Returns:
      The collectives in the order of the text.

    Example:
      >>> text = '''ENTRY %main (a: f32[8]) -> f32[32] {
      ...   %g = f32[32]{0} all-gather(%a), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
      ... }'''
      >>> found, = find_collectives(text, 4, axes={"data": 4})
      >>> found.kind, found.bytes, found.wire_bytes, found.axes
      ('all-gather', 128, 96.0, ('data',))
    """
    lines = read_hlo(program) if isinstance(program, str) else program
    # With several slices of TPUs the program is that of one, and so are its device numbers.
    if isinstance(program, str) and (partitions := _PARTITIONS.search(program)):
        devices = int(partitions[1])
    axes, slice_of = dict(axes or {}), list(slice_of or [0] * devices)
    out: dict[tuple[str, ...], Collective] = {}
    for line in lines:
        kind = line.opcode.removesuffix("-start")
        if kind in _KINDS:
            found = _collective(line, kind, devices, axes, slice_of)
        elif line.opcode == "send" and (transfer := _MEGASCALE.search(line.text)):
            kind = _TRANSFERS.get(transfer[1], transfer[1].lower())
            found = _transfer(line, kind, axes, slice_of)
        else:
            continue
        out.setdefault(_identity(line), found)
    return list(out.values())


def _identity(line: Instruction) -> tuple[str, ...]:
    """What two lines of one collective have in common."""
    chain, channel = _CHAIN.search(line.text), _CHANNEL.search(line.text)
    if chain and channel:
        return ("chain", channel[1], chain[1])
    rendezvous = _RENDEZVOUS.search(line.text)
    return ("transfer", rendezvous[1]) if rendezvous else ("line", line.name)


def _collective(
    line: Instruction, kind: str, devices: int, axes: Mapping[str, int], slice_of: Sequence[int]
) -> Collective:
    result = tuple(each for each in line.result if each.dtype != "token")
    if line.opcode.endswith("-start"):
        result = _started(kind, result)
    groups = read_groups(line.text, devices)
    where = _WHERE.search(line.text)
    return Collective(
        kind,
        result,
        max(len(set(group)) for group in groups),  # 1 for those that send to themselves
        axes_of(groups, axes),
        is_between(groups, slice_of),
        line.times,
        line.conditional,
        line.endless,
        where[1] if where else "",
    )


def _started(kind: str, result: tuple[Typed, ...]) -> tuple[Typed, ...]:
    """The results of what is started: in the tuple operands come first, and counters may follow.

    What starts an all-reduce has the results alone.
    """
    if kind == "all-reduce":
        return result
    while len(result) > 2 and result[-1].dtype in ("u32", "s32") and not result[-1].shape:
        result = result[:-1]
    return result[len(result) // 2 :]


def _transfer(
    line: Instruction, kind: str, axes: Mapping[str, int], slice_of: Sequence[int]
) -> Collective:
    """An exchange between slices of TPUs; the first part of a send's result is what is sent."""
    targets = _TARGETS.search(line.text)
    members = len(re.split(r",|->", targets[1])) if targets else len(set(slice_of))
    size = line.result[:1]
    along = tuple(axes) if members == len(slice_of) else _slice_axes(axes, slice_of)
    if kind in ("all-gather", "reduce-scatter"):
        # Bytes of the result, as for the others: of a gather all parts, of a scatter one.
        part = size[0]
        scale = members if kind == "all-gather" else 1 / members
        size = (Typed(part.dtype, (round(part.bytes * 8 * scale / _width(part)),)),)
    rendezvous = _RENDEZVOUS.search(line.text)
    return Collective(
        kind,
        size,
        members,
        along,
        True,
        line.times,
        line.conditional,
        line.endless,
        rendezvous[1] if rendezvous else "",
    )


def _width(part: Typed) -> int:
    return Typed(part.dtype, (8,)).bytes  # 8 entries have as many bytes as one has bits


def _slice_axes(axes: Mapping[str, int], slice_of: Sequence[int]) -> tuple[str, ...]:
    """The mesh axes along which the slice changes."""
    slices: dict[int, list[int]] = {}
    for number, name in enumerate(slice_of):
        slices.setdefault(name, []).append(number)
    if len(slices) < 2:
        return ()
    return axes_of(tuple(zip(*slices.values(), strict=False)), axes)


__all__ = ["Collective", "find_collectives", "sent_bytes"]
