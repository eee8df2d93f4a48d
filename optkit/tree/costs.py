"""What it costs to work on whole matrices that lie on several devices, and the cheapest way."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import jax
from jax.sharding import PartitionSpec

Mode = Literal["auto", "layer", "gram", "replicate"]

# FLOPs that a device does in the time in which it sends a byte: 197e12 bf16 FLOP/s over 2e11 bytes
# a second on a TPU v5e, 990e12 over 4.5e11 on an H100 with NVLink, as their makers publish them.
FLOPS_PER_BYTE = 1000


@dataclass(frozen=True)
class MatrixSharding:
    """How a matrix method spreads its work over a mesh.

    On one device, and for leaves whose matrices lie whole on single devices already, it says
    nothing. Elsewhere, for ``count`` matrices of one shape on ``devices`` devices,

    - "layer" moves whole matrices to single devices and back: 2 exchanges, whatever the count;
    - "gram" splits the long side over all devices, sums ``X X^T`` over them once, iterates on it
      and multiplies each device's columns: for few matrices, or long ones;
    - "replicate" gathers all matrices on all devices, which all do all the work;
    - "auto" takes the cheapest by ``layer_cost``, ``gram_cost`` and ``replicate_cost``; functions
      that do not say what they cost, or that need whole matrices, take "layer".

    Attributes:
      mode: one of these.
      axes: mesh axes that the work is spread over. None for those that partition the leaf where
        that is known (Explicit axes, or ``specs``), else for all but those called "slice", "dcn",
        "replica" or "host". Name them where another axis has slow links: on the axes that are left
        out every replica does the same work, and nothing is sent.
      specs: tree like the parameters of ``PartitionSpec``s or ``NamedSharding``s, for Auto axes,
        whose partitions a program does not know while it is traced. Square matrices that are cut
        along different sides then need no exchange of their own.

    Example:
      >>> import optkit
      >>> optkit.tree.MatrixSharding("layer", axes=("fsdp",)).mode
      'layer'
    """

    mode: Mode = "auto"
    axes: Sequence[str] | None = None
    specs: Any = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"sharding must be one of {get_args(Mode)}, got {self.mode!r}")
        if self.axes is not None and (isinstance(self.axes, str) or not tuple(self.axes)):
            raise ValueError(
                f"axes={self.axes!r}: give a sequence of names of mesh axes, or None for those "
                "that the leaves are partitioned over"
            )

    def __hash__(self) -> int:
        return hash((self.mode, self.axes and tuple(self.axes)))


Sharding: TypeAlias = Mode | MatrixSharding


def as_sharding(sharding: Sharding) -> MatrixSharding:
    """Returns the sharding that a mode stands for.

    Args:
      sharding: a mode, or what it stands for.

    Raises:
      ValueError: an unknown mode.

    Example:
      >>> as_sharding("gram").mode
      'gram'
    """
    return sharding if isinstance(sharding, MatrixSharding) else MatrixSharding(sharding)


@dataclass(frozen=True, eq=False)
class MatrixFunction:
    """A function of matrices, and what may be done to them on the way; called like the function.

    Attributes:
      whole: the function of ``(..., m, n)`` and any other arrays.
      split: the same function inside a ``shard_map`` where ``n`` is split over mesh axes: takes
        ``(k, m, n / devices)`` and the axes' names; None if it needs whole matrices.
      turns: tells that ``f(X^T) = f(X)^T``.
      widens: tells that columns of zeros stay zeros and change nothing else.
      flops: FLOPs for one matrix of ``m <= n``; None if unknown.
      split_flops: of ``split``, those that are done once a matrix, not once a column.
      wire: dtype that the matrices may be rounded to before they are moved; None for their own.
      spread: tells that the other arguments are matrices that lie in parts on the devices, and are
        moved like the first; not statistics that are whole on each.
    """

    whole: Callable[..., Any]
    split: Callable[[jax.Array, tuple[str, ...]], jax.Array] | None = None
    turns: bool = False
    widens: bool = False
    flops: Callable[[int, int], int] | None = None
    split_flops: Callable[[int], int] | None = None
    wire: Any = None
    spread: bool = False

    def __call__(self, *args: jax.Array) -> Any:
        """Calls ``whole``."""
        return self.whole(*args)


def as_function(function: Callable[..., Any]) -> MatrixFunction:
    """Returns the function as one of which nothing else is known, unless more is."""
    return function if isinstance(function, MatrixFunction) else MatrixFunction(function)


@dataclass(frozen=True)
class Batch:
    """Matrices of one shape.

    Attributes:
      count: how many.
      m: rows.
      n: columns.
      itemsize: bytes that an entry takes on its way.
    """

    count: int
    m: int
    n: int
    itemsize: int

    @property
    def matrix_bytes(self) -> int:
        """Bytes of one matrix on its way."""
        return self.m * self.n * self.itemsize


def layer_bytes(batch: Batch, devices: int) -> float:
    """Bytes that each device sends for "layer".

    The stack is padded to a multiple of the devices, so that each holds ``ceil(count / devices)``
    matrices, and an all-to-all sends all of that but the device's own part, there and back.

    Args:
      batch: the matrices.
      devices: how many.

    Example:
      >>> layer_bytes(Batch(96, 1024, 1024, 2), 16) / 2**20
      22.5
    """
    own = math.ceil(batch.count / devices)
    return 2 * own * batch.matrix_bytes * (devices - 1) / devices


def layer_cost(batch: Batch, devices: int, flops: int) -> float:
    """FLOPs of the busiest device for "layer", with its bytes at ``FLOPS_PER_BYTE``.

    Args:
      batch: the matrices.
      devices: how many.
      flops: of one matrix.

    Example:
      >>> layer_cost(Batch(1, 2, 2, 4), 2, flops=100)
      16100.0
    """
    own = math.ceil(batch.count / devices)
    return own * flops + FLOPS_PER_BYTE * layer_bytes(batch, devices)


def replicate_cost(batch: Batch, devices: int, flops: int) -> float:
    """The same for "replicate": all the work, and one gathering of all matrices.

    Args:
      batch: the matrices.
      devices: how many.
      flops: of one matrix.

    Example:
      >>> replicate_cost(Batch(1, 2, 2, 4), 2, flops=100)
      8100.0
    """
    sent = batch.count * batch.matrix_bytes * (devices - 1) / devices
    return batch.count * flops + FLOPS_PER_BYTE * sent


def gram_cost(batch: Batch, devices: int, split_flops: int, *, moves: bool) -> float:
    """The same for "gram": two products a column, a sum of float32 Gram matrices, the iteration.

    With at least as many matrices as devices each device iterates on its share of them, and the
    results are gathered; otherwise all iterate on all.

    Args:
      batch: the matrices.
      devices: how many.
      split_flops: of the iteration on one Gram matrix.
      moves: whether the long side is still to be split over the devices, and put back.

    Example:
      >>> gram_cost(Batch(1, 2, 200, 4), 2, split_flops=100, moves=False)
      17700.0
    """
    products = batch.count * 4 * batch.m**2 * batch.n / devices
    share = (devices - 1) / devices
    grams = batch.count * 4 * batch.m**2
    spread = batch.count >= devices
    own = math.ceil(batch.count / devices) if spread else batch.count
    sent = (3 if spread else 2) * share * grams
    if moves:
        sent += 2 * share * batch.count * batch.matrix_bytes / devices
    return products + own * split_flops + FLOPS_PER_BYTE * sent


def choose_mode(
    batch: Batch, devices: int, function: MatrixFunction, mode: Mode = "auto", *, moves: bool = True
) -> Mode:
    """Returns how a batch is spread over devices.

    Args:
      batch: the matrices.
      devices: how many.
      function: what is done to them.
      mode: what was asked for.
      moves: see ``gram_cost``.

    Returns:
      "layer", "gram" or "replicate": what was asked for, or of the modes that the function knows
      the cheapest, "layer" among equals.

    Raises:
      ValueError: "gram" was asked for and the function needs whole matrices.

    Example:
      >>> one = MatrixFunction(lambda x: x, flops=lambda m, n: 10 * m * m * n)
      >>> [choose_mode(Batch(count, 64, 64, 2), 16, one) for count in (1, 16)]
      ['replicate', 'layer']
    """
    if mode == "gram" and function.split is None:
        raise ValueError(
            "sharding='gram' is for Newton-Schulz iterations that divide by the Frobenius norm, "
            "whose coefficients need no reset in float32 (optkit.linalg.default_resets); choose "
            "'layer', 'replicate' or 'auto'"
        )
    if mode != "auto" or function.flops is None:
        return "layer" if mode == "auto" else mode
    flops = function.flops(batch.m, batch.n)
    costs: dict[Mode, float] = {
        "layer": layer_cost(batch, devices, flops),
        "replicate": replicate_cost(batch, devices, flops),
    }
    if function.split is not None and function.split_flops is not None:
        costs["gram"] = gram_cost(batch, devices, function.split_flops(batch.m), moves=moves)
    return min(costs, key=lambda each: costs[each])


def merge_widths(
    batches: Sequence[Batch], devices: int, flops: Callable[[int, int], int]
) -> list[list[int]]:
    """Puts batches of one short side into one exchange where that shortens the work.

    A device works through one batch after the other, ``sum(ceil(count / devices) * flops)`` in
    all; two batches that do not fill the devices leave some of them idle twice. Columns of zeros
    make the narrow matrices of one as wide as those of the other: from the widest to the narrowest,
    a batch joins the wider one with which ``layer_cost`` falls most.

    Args:
      batches: matrices of one number of rows and one dtype, each of another width.
      devices: how many.
      flops: of one matrix of ``m <= n``.

    Returns:
      Which batches go together, the widest of each first.

    Example:
      >>> batches = [Batch(96, 1024, 1024, 2), Batch(48, 1024, 4096, 2)]
      >>> work = lambda m, n: 20 * m * m * n + 10 * m**3
      >>> merge_widths(batches, 256, work), merge_widths(batches, 16, work)
      ([[1, 0]], [[1], [0]])
    """

    def cost(members: list[int]) -> float:
        wide = batches[members[0]]
        merged = replace(wide, count=sum(batches[i].count for i in members))
        return layer_cost(merged, devices, flops(wide.m, wide.n))

    groups: list[list[int]] = []
    for index in sorted(range(len(batches)), key=lambda i: -batches[i].n):
        gains = [cost(group) + cost([index]) - cost([*group, index]) for group in groups]
        best = max(range(len(groups)), key=gains.__getitem__, default=None)
        if best is not None and gains[best] > 0:
            groups[best].append(index)
        else:
            groups.append([index])
    return groups


def axes_of(spec: PartitionSpec | None) -> tuple[str, ...]:
    """Returns the mesh axes that a partition names, in its order."""
    out: list[str] = []
    for part in spec or ():
        if part is not None and part is not PartitionSpec.UNCONSTRAINED:
            out += part if isinstance(part, tuple) else (part,)
    return tuple(out)
