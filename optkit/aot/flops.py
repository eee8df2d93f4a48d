"""Counts the multiplications of a compiled program; XLA's own count passes over each loop once."""

import math
import re
from collections.abc import Iterable

import numpy as np

from optkit.aot.hlo import Instruction

_OPERAND = re.compile(r"%([\w.\-<>]+)")
_CONTRACTED = re.compile(r"lhs_contracting_dim(?:ension)?s\"?[=:][\[{]([\d,\"]*)[\]}]")
_LABELS = re.compile(r"dim_labels=\w+_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_LHS_LABELS = re.compile(r"dim_labels=(\w+?)_")


def matmul_flops(program: Iterable[Instruction]) -> int:
    """Returns the floating-point operations of matrix products and convolutions.

    A TPU's products are written as convolutions, a batch of them as a spatial dimension with gaps:
    what meets a gap is not counted. Pallas kernels count nothing.

    Args:
      program: from ``read_hlo``.

    Returns:
      Two for each multiplication with its addition, loops multiplied, of one device.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from optkit.aot import matmul_flops, read_hlo
      >>> shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
      >>> matmul_flops(read_hlo(jax.jit(lambda x: x @ x).lower(shape).compile().as_text()))
      524288
    """
    lines = list(program)
    shapes = {line.name: line.result[0].shape for line in lines if len(line.result) == 1}
    return sum(line.times * _flops(line, shapes) for line in lines)


def _flops(line: Instruction, shapes: dict[str, tuple[int, ...]]) -> int:
    gemm = line.opcode == "custom-call" and 'custom_call_target="__cublas' in line.text
    if not gemm and line.opcode not in ("dot", "convolution"):
        return 0
    operands = _OPERAND.findall(line.text.split(")")[0])
    if len(operands) < 2 or not set(operands[:2]) <= shapes.keys():
        return 0
    left, right = (shapes[name] for name in operands[:2])
    out = line.result[0].shape
    if line.opcode == "convolution":
        return 2 * _convolution(line.text, left, right, out)
    found = _CONTRACTED.search(line.text)
    numbers = re.findall(r"\d+", found[1]) if found else []
    return 2 * math.prod(out) * math.prod(left[int(n)] for n in numbers)


def _convolution(
    text: str, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...]
) -> int:
    """Multiplications of a convolution: pairs of places, times channels in and out, times batch."""
    labels, sides = _LABELS.search(text), _LHS_LABELS.search(text)
    if labels is None or sides is None:
        return 0
    sizes = dict(zip(sides[1], left, strict=True))
    kernel = dict(zip(labels[1], right, strict=True))
    result = dict(zip(labels[2], out, strict=True))
    found = _WINDOW.search(text)
    window = dict(part.split("=") for part in found[1].split()) if found else {}
    total = result["b"] * result["f"] * kernel["i"]
    spatial = sorted(label for label in result if label.isdigit())
    for number, label in enumerate(spatial):

        def option(name: str, default: str, number: int = number) -> str:
            return window[name].split("x")[number] if name in window else default

        low = int(option("pad", "0_0").split("_")[0])
        dilate = int(option("lhs_dilate", "1"))
        places = np.arange(result[label])[:, None] * int(option("stride", "1"))
        at = places + np.arange(kernel[label]) * int(option("rhs_dilate", "1")) - low
        inside = (at >= 0) & (at <= (sizes[label] - 1) * dilate) & (at % dilate == 0)
        total *= int(inside.sum())
    return total


__all__ = ["matmul_flops"]
