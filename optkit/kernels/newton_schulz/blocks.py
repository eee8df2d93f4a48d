"""Blocks of the kernels, and which ones suit a shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from optkit.kernels.blocks import LANES, Blocks, least_filled


@dataclass(frozen=True)
class ResidentBlocks(Blocks):
    """Blocks of the kernel that keeps a whole matrix on the chip.

    Attributes:
      rows: rows and columns of a tile of the squares: 128 or 256.
      columns: columns of X that are multiplied at once.

    Raises:
      ValueError: no positive multiples of 128, or tiles of more than 256 rows.
    """

    rows: int = 256
    columns: int = 256
    multiples: ClassVar[Mapping[str, int]] = {"rows": LANES, "columns": LANES}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows > 2 * LANES:
            raise ValueError(f"ResidentBlocks(rows={self.rows}): at most {2 * LANES}")


def resident_blocks(m: int, n: int) -> ResidentBlocks:
    """Returns blocks that fill a matrix up by as little as can be, the larger ones if equal.

    Example:
      >>> resident_blocks(768, 3072), resident_blocks(100, 300)
      (ResidentBlocks(rows=256, columns=256), ResidentBlocks(rows=128, columns=128))
    """
    choice = (LANES, 2 * LANES)
    return ResidentBlocks(least_filled(m, choice), least_filled(n, choice))
