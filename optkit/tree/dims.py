"""Which axes of a leaf are its matrix's input and output, as a user says it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from optax.contrib import MuonDimensionNumbers

from optkit.tree.paths import PyTree, leaves_with_paths, values_by_path


class MatrixDims(NamedTuple):
    """``optax.contrib.MuonDimensionNumbers``, and the blocks of a fused kernel.

    Every block is a matrix of its own, with its own fan_in and fan_out: the heads of an attention
    in one ``Dense``, or query, key and value in one. A number means so many equal blocks, a tuple
    their sizes, along the side's only axis.

    Attributes:
      reduction_axis: axis or axes that the layer sums over.
      output_axis: axis or axes that index its outputs.
      reduction_blocks: blocks of the input, as in an attention's output projection.
      output_blocks: blocks of the output, as in a fused query, key and value.
    """

    reduction_axis: int | Sequence[int] = 0
    output_axis: int | Sequence[int] = 1
    reduction_blocks: int | tuple[int, ...] = 1
    output_blocks: int | tuple[int, ...] = 1


AnyDims: TypeAlias = MuonDimensionNumbers | MatrixDims
Dims: TypeAlias = AnyDims | Callable[[PyTree], PyTree] | PyTree | None


def is_dims(value: Any) -> bool:
    """Tells whether a value is one leaf's dimension numbers."""
    return isinstance(value, MuonDimensionNumbers | MatrixDims)


def dims_by_path(params: PyTree, dims: Dims) -> dict[str, AnyDims | None] | None:
    """Returns the dimension numbers of each path when a tree of them was given, else None.

    Args:
      params: parameters, updates or shapes.
      dims: None, one ``MuonDimensionNumbers`` for all matrices, a tree (or prefix tree) of them in
        which None means "not a matrix", or a function from params to such a tree.

    Returns:
      A dict over the paths of ``params``, or None if ``dims`` does not name leaves.

    Example:
      >>> import optax, optkit
      >>> one = optax.contrib.MuonDimensionNumbers()
      >>> sorted(optkit.tree.dims_by_path({"a": 1, "b": 2}, {"a": one, "b": None}))
      ['a', 'b']
    """
    if dims is None or is_dims(dims):
        return None
    tree = dims(params) if callable(dims) else dims
    is_leaf = lambda x: x is None or is_dims(x)  # noqa: E731
    out = values_by_path(params, tree, is_leaf)
    for path, _ in leaves_with_paths(params):
        if path not in out:
            raise ValueError(
                f"the tree of dimension numbers has no entry for leaf {path!r}; add one, or None "
                "if the leaf is not a matrix"
            )
    return out
