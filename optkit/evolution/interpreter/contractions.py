"""Rules of what uses a parameter: products, convolutions, lookups.

A product with the parameter is the product with what all members share, plus a thin product with
one factor and then with the other. The factor that shortens most comes first.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from optkit import _jaxprs
from optkit.evolution.interpreter.carried import Carried, Record, dense
from optkit.evolution.interpreter.engine import rule
from optkit.evolution.interpreter.kernel import by_kernel


@rule("dot_general")
def _dot_general(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any]:
    values = _one_carried(record, eqn, values)
    side = 0 if isinstance(values[0], Carried) else 1
    w, x = values[side], values[1 - side]
    contract, batch = eqn.params["dimension_numbers"]
    labels = _labels(contract, batch, (jnp.ndim(values[0]) if side else w.ndim, _ndim(values[1])))
    out = [labels[0][axis] for axis in batch[0]]
    for side_labels, summed, common in zip(labels, contract, batch, strict=True):
        out += [name for axis, name in enumerate(side_labels) if axis not in (*summed, *common)]
    free = [axis for axis in range(w.ndim) if axis not in (*contract[side], *batch[side])]
    w.note(record, "contracted", eqn, contracted=contract[side], free=free, batch=batch[side])
    if record.implementation != "xla":
        by = by_kernel(w, x, side, eqn, record.implementation)
        if by is not None:
            return [w.finish(by)]
    plain = [w.value.base, x] if side == 0 else [x, w.value.base]
    (shared,) = _jaxprs.bind(eqn, plain)
    own = through_factors(
        w, labels[side], x, labels[1 - side], out, shared.dtype, eqn.params["precision"]
    )
    return [w.finish(shared + own)]


def _ndim(x: Any) -> int:
    return x.ndim if isinstance(x, Carried) else jnp.ndim(x)


def _one_carried(record: Record, eqn: Any, values: list[Any]) -> list[Any]:
    """Materializes the smaller of two carried operands."""
    if not all(isinstance(value, Carried) for value in values):
        return values
    sizes = [math.prod(value.value.shape) for value in values]
    index = sizes.index(min(sizes))
    values = list(values)
    values[index] = dense(values[index], record, eqn.primitive.name, _jaxprs.source(eqn))
    return values


def _labels(contract: Any, batch: Any, ndims: Sequence[int]) -> list[list[int]]:
    """Returns numbers for the axes of both operands, the same for those they have in common."""
    left = list(range(ndims[0]))
    right = [ndims[0] + axis for axis in range(ndims[1])]
    for mine, theirs in (*zip(*contract, strict=True), *zip(*batch, strict=True)):
        right[theirs] = left[mine]
    return [left, right]


def through_factors(
    w: Carried,
    w_labels: Sequence[int],
    x: jax.Array,
    x_labels: Sequence[int],
    out: Sequence[int],
    dtype: Any,
    precision: Any = None,
) -> jax.Array:
    """Returns the product with ``scale * sum_r a_r b_r``, summed over all labels not in ``out``.

    Args:
      w: the parameter.
      w_labels: a label for each of its axes.
      x: the other operand.
      x_labels: a label for each of its axes.
      out: labels of the result.
      dtype: of the result.
      precision: of the products.
    """
    rank = -1
    sides = [
        (w.value.a, [w_labels[axis] for axis in w.a_axes]),
        (w.value.b, [w_labels[axis] for axis in w.b_axes]),
    ]
    sizes = dict(zip(w_labels, w.value.shape, strict=True))
    summed = [math.prod(sizes[name] for name in labels if name not in out) for _, labels in sides]
    if summed[0] < summed[1]:
        sides.reverse()
    (first, first_labels), (last, last_labels) = sides
    kept = [
        name
        for name in dict.fromkeys((*x_labels, *first_labels))
        if name in out or name in last_labels
    ]
    renamed = {name: index for index, name in enumerate((*sizes, *x_labels, rank))}

    def names(labels: Sequence[int]) -> list[int]:
        return [renamed[name] for name in labels]

    def product(y: jax.Array, y_names: Any, f: jax.Array, f_names: Any, result: Any) -> jax.Array:
        return jnp.einsum(
            *(y, names(y_names), f, names([*f_names, rank]), names(result)),
            precision=precision,
            preferred_element_type=dtype,
        )

    thin = product(x, x_labels, first, first_labels, [*kept, rank])
    thin = w.scaled(thin).astype(x.dtype)
    return product(thin, [*kept, rank], last, last_labels, out)


@rule("conv_general_dilated")
def _conv(record: Record, eqn: Any, values: list[Any], live: list[bool]) -> list[Any] | None:
    x, w = values
    params = eqn.params
    _, rhs, out = params["dimension_numbers"]
    if not isinstance(w, Carried) or isinstance(x, Carried):
        return None
    if params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        return None
    outputs, inputs = rhs[0], sorted(rhs[1:])
    w.note(record, "contracted", eqn, contracted=inputs, free=[outputs])
    if outputs in w.value.left and sorted(w.value.right) == inputs:
        wide, thin = w.value.b, w.value.a
    elif outputs in w.value.right and sorted(w.value.left) == inputs:
        wide, thin = w.value.a, w.value.b
    else:
        return None
    (shared,) = _jaxprs.bind(eqn, [x, w.value.base])
    narrow = _narrow_conv(eqn, x, wide)
    narrow = w.scaled(narrow).astype(x.dtype)
    labels = list(range(narrow.ndim))
    result = [*labels]
    result[out[1]] = narrow.ndim
    own = jnp.einsum(
        *(narrow, labels, thin.astype(x.dtype), [narrow.ndim, out[1]], result),
        precision=params["precision"],
        preferred_element_type=shared.dtype,
    )
    return [w.finish(shared + own)]


def _narrow_conv(eqn: Any, x: jax.Array, wide: jax.Array) -> jax.Array:
    """Returns the convolution with one factor, as many channels as it has ranks.

    Kernels that differ by member are slow to convolve with, products are not: all taps of all ranks
    are channels of one product, and a kernel of zeros and ones, the same for all, moves each to
    its place and adds. Where that would take more memory than the layer, for wide strides, the
    factor is the kernel.
    """
    params = eqn.params
    lhs, rhs, out = params["dimension_numbers"]
    outputs, channels, *space = rhs
    axes = [axis for axis in range(len(rhs)) if axis != outputs]  # of the factor, then ranks
    window = [wide.shape[axes.index(axis)] for axis in space]
    ranks, taps = wide.shape[-1], math.prod(window)
    layer = max(x.shape[lhs[1]], eqn.outvars[0].aval.shape[out[1]])
    if taps * ranks * math.prod(params["window_strides"]) > 4 * layer:
        return _jaxprs.bind(eqn, [x, jnp.moveaxis(wide, -1, outputs)])[0]
    names = {channels: lhs[1], **{axis: x.ndim + n for n, axis in enumerate(space)}}
    rank = 2 * x.ndim
    result = list(range(x.ndim))
    result[lhs[1] : lhs[1] + 1] = [*(names[axis] for axis in space), rank]
    spread = jnp.einsum(
        *(x, range(x.ndim), wide, [*(names[axis] for axis in axes), rank], result),
        precision=params["precision"],
        preferred_element_type=x.dtype,
    )
    shape = list(x.shape)
    shape[lhs[1]] = taps * ranks
    place = jnp.eye(taps * ranks, dtype=x.dtype).reshape(*window, ranks, taps * ranks)
    order = {axis: n for n, axis in enumerate([*space, outputs, channels])}
    kernel = place.transpose([order[axis] for axis in range(len(rhs))])
    return _jaxprs.bind(eqn, [spread.reshape(shape), kernel])[0]
