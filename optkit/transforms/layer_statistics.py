"""What layers of a tree are to MKOR, and the statistics that it is given of them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from optkit.curvature import LayerMeans
from optkit.tree import MatrixView


class Layer(NamedTuple):
    """A kernel that is preconditioned."""

    path: str
    kernel: int  # its place among the leaves
    bias: int | None  # of the bias
    view: MatrixView


def means_of(statistics: Any, layers: Sequence[Layer]) -> dict[str, LayerMeans]:
    """Returns the statistics of each layer; raises ValueError with the paths that have none."""
    if not isinstance(statistics, Mapping):
        raise ValueError(
            "statistics must be a mapping from the path of a kernel to (mean input, mean output "
            f"gradient), such as optkit.curvature.layer_means makes, not {type(statistics)}"
        )
    layers = [layer for layer in layers if np.prod(layer.view.shape)]
    missing = [layer.path for layer in layers if layer.path not in statistics]
    if missing:
        raise ValueError(
            f"mkor got no statistics for the layers {missing}; it got some for "
            f"{sorted(statistics)}. Name with layers= those that it shall precondition. "
            "optkit.curvature.layer_means does not see layers inside of jax.lax.scan (stacked "
            "kernels of scanned layers), jax.vmap over kernels, and convolutions"
        )
    out = {}
    for layer in layers:
        pair = statistics[layer.path]
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"the statistics of layer {layer.path!r} must be a pair (mean input, mean output "
                f"gradient), not {len(pair) if isinstance(pair, tuple | list) else type(pair)}"
            )
        a, d = pair
        batch, view = int(np.prod(layer.view.batch_shape)), layer.view
        inputs = [batch * (view.fan_in + extra) for extra in range(1 + (layer.bias is not None))]
        if np.size(a) not in inputs or np.size(d) != batch * view.fan_out:
            raise ValueError(
                f"the statistics of layer {layer.path!r} have shapes {np.shape(a)} and "
                f"{np.shape(d)}; its mean input has {view.fan_in} entries and its mean output "
                f"gradient {view.fan_out}"
            )
        out[layer.path] = LayerMeans(a, d)
    return out
