"""Event files of a training run for TensorBoard: scalars, and histograms of spectra."""

import math
import pathlib
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, cast

import numpy as np

from optkit.cli.errors import require_extra

__all__ = ["TensorBoard", "histograms", "scalars"]


def scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns the numbers of a row of the log under TensorBoard's names.

    Args:
      row: as ``optkit train`` logs it.

    Returns:
      Values by tag: ``train/...``, ``held_out/...``, ``diagnostics/METRIC/LEAF``.

    Example:
      >>> scalars({"step": 3, "seconds": 0.5, "loss": 2.0, "held_out": {"error": 0.5},
      ...          "diagnostics": {"up/kernel/top_singular": 1.5}})
      {'train/loss': 2.0, 'held_out/error': 0.5, 'diagnostics/top_singular/up/kernel': 1.5}
    """
    out: dict[str, float] = {}
    for name, value in row.items():
        if name == "held_out":
            out |= {f"held_out/{key}": number for key, number in value.items()}
        elif name == "diagnostics":
            for key, number in value.items():
                path, _, metric = key.rpartition("/")
                out[f"diagnostics/{metric}/{path}"] = number  # one page of charts a metric
        elif name not in ("step", "seconds", "spectra"):
            out[f"train/{name}"] = value
    return {tag: value for tag, value in out.items() if value is not None}


def histograms(row: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the spectra of a row of the log under TensorBoard's names.

    Args:
      row: as ``optkit train`` logs it.

    Returns:
      Singular values by tag, ``spectra/LEAF``; what is not finite, and a matrix without any finite
      value, is left out.

    Example:
      >>> histograms({"step": 3, "spectra": {"up/kernel": [2.0, None]}})
      {'spectra/up/kernel': array([2.])}
    """
    found = {
        f"spectra/{path}": [x for x in values if x is not None and math.isfinite(x)]
        for path, values in row.get("spectra", {}).items()
    }
    return {tag: np.array(values) for tag, values in found.items() if values}


class TensorBoard:
    """Writes rows of the log; a resumed run replaces what lies behind its checkpoint.

    Args:
      directory: of the event files; None writes none.
    """

    def __init__(self, directory: pathlib.Path | None) -> None:
        self._directory, self._writer = directory, cast(Any, None)
        if directory is not None:
            require_extra(["tensorboardX"], purpose="--tensorboard", extra="tensorboard")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def row(self, row: Mapping[str, Any]) -> None:
        """Writes one row.

        Args:
          row: as ``optkit train`` logs it, with ``step``.
        """
        if self._directory is None:
            return
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=row["step"])
        for tag, value in scalars(row).items():
            self._writer.add_scalar(tag, value, row["step"])
        for tag, values in histograms(row).items():
            self._writer.add_histogram(tag, values, row["step"])
