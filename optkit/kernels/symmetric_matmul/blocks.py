"""Blocks of the tiled products, and which ones suit a shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from optkit.kernels.blocks import LANES, Blocks, least_filled


@dataclass(frozen=True)
class TpuBlocks(Blocks):
    """Blocks of a product on a TPU.

    Attributes:
      rows: rows and columns of a tile of the result.
      depth: of the reduced axis, at once.

    Raises:
      ValueError: no positive multiples of 128.
    """

    rows: int = 512
    depth: int = 512
    multiples: ClassVar[Mapping[str, int]] = {"rows": LANES, "depth": LANES}


@dataclass(frozen=True)
class GpuBlocks(Blocks):
    """Blocks of a product on a GPU.

    Attributes:
      rows: rows and columns of a tile of the result.
      depth: of the reduced axis, at once.

    Raises:
      ValueError: no powers of two of 16 or more, which Triton's tiles have to be.
    """

    rows: int = 128
    depth: int = 64
    multiples: ClassVar[Mapping[str, int]] = {"rows": 16, "depth": 16}

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rows", "depth"):
            size = getattr(self, name)
            if size & (size - 1):
                raise ValueError(f"GpuBlocks({name}={size}): not a power of two")


def tpu_blocks(m: int, depth: int) -> TpuBlocks:
    """Returns blocks that fill both axes up by as little as can be, the largest ones if equal.

    Example:
      >>> tpu_blocks(4096, 4096), tpu_blocks(640, 100)
      (TpuBlocks(rows=512, depth=512), TpuBlocks(rows=128, depth=128))
    """
    choice = (LANES, 2 * LANES, 4 * LANES)
    return TpuBlocks(least_filled(m, choice), least_filled(depth, choice))


def lower_tiles(count: int) -> np.ndarray:
    """Returns the tiles on and below the diagonal of ``count`` rows of tiles, int32 ``(2, ...)``.

    Example:
      >>> lower_tiles(2).tolist()
      [[0, 1, 1], [0, 0, 1]]
    """
    return np.asarray(np.tril_indices(count), np.int32)
