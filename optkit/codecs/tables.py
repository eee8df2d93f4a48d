"""Tables of the numbers that codes of few bits stand for, sorted, as the references have them."""

import functools
from typing import Literal, get_args

import numpy as np

TableKind = Literal["dynamic", "linear", "e4m3", "e5m2", "nf4", "sixteenths"]

# bitsandbytes, functional.py: the normal quantiles of QLoRA (arXiv 2305.14314, appendix E).
_NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0)  # fmt: skip


def _linspace(start: float, stop: float, count: int) -> np.ndarray:
    """Equal steps in float32 from both ends to the middle, each rounded once, as torch does it.

    A difference in the last bit would be one in the table, which has to be the references'.
    """
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(count - 1))
    at = np.arange(count)
    rising = np.float64(first) + step * at
    falling = np.float64(last) - step * (count - 1 - at)
    return np.where(at < count // 2, rising, falling).astype(np.float32)


def _midpoints(count: int) -> np.ndarray:
    """The middles of ``count`` equal parts of [0.1, 1]."""
    edges = _linspace(0.1, 1.0, count + 1)
    return (edges[:-1] + edges[1:]) / np.float32(2.0)


def dynamic_map(signed: bool = True, exponent_bits: int = 7, bits: int = 8) -> np.ndarray:
    """Returns the dynamic map: decades of equal spacing, finer towards 1.

    Decade ``i`` of ``exponent_bits`` runs up to ``10**(i-exponent_bits+1)`` and is cut into
    ``2**(i+bits-1-exponent_bits)`` parts (twice as many unsigned), of which the middles are
    entries, with their negatives if signed; what codes are left go into the last decade. 0 and 1
    complete it; **there is no -1**.

    Args:
      signed: with negative entries.
      exponent_bits: number of decades.
      bits: of a code.

    Returns:
      float32, sorted, at most ``2**bits`` entries.

    Raises:
      ValueError: as many decades as bits, or more.

    Example:
      >>> from optkit.codecs import dynamic_map
      >>> [round(float(x), 4) for x in dynamic_map(True, 3, 4)[8:]]
      [0.0055, 0.0325, 0.0775, 0.2125, 0.4375, 0.6625, 0.8875, 1.0]

    Reference: Dettmers et al., 8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861.
    """
    free = bits - 1 - exponent_bits
    if free < 0 or exponent_bits < 1:
        raise ValueError(
            f"exponent_bits={exponent_bits} must be from 1 to bits-1={bits - 1}: one bit is the "
            "sign's, or doubles the entries"
        )
    decades = [
        (2 ** (i + free + (0 if signed else 1)), np.float32(10.0 ** (i - exponent_bits + 1)))
        for i in range(exponent_bits)
    ]
    if free > 0:
        decades.append((2**free - 1, np.float32(1.0)))
    parts = [_midpoints(count) * scale for count, scale in decades]
    if signed:
        parts += [-part for part in parts]
    return np.sort(np.concatenate([*parts, np.array([0.0, 1.0], np.float32)])).astype(np.float32)


def linear_map(signed: bool = True, bits: int = 8) -> np.ndarray:
    """Returns equally spaced entries; signed, the one in the middle is 0 but for rounding.

    Args:
      signed: from -1, else from 0.
      bits: of a code.

    Returns:
      float32, sorted, ``2**bits`` entries, or one less.

    Example:
      >>> from optkit.codecs import linear_map
      >>> linear_map(True, 2).tolist()
      [-1.0, 0.0, 1.0]
    """
    grid = _linspace(-1.0 if signed else 0.0, 1.0, 2**bits - (1 if signed else 0))
    # The references' fill up to 2**bits entries with a 0 beside the middle, which may be 1e-8.
    return np.unique(np.append(grid, np.float32(0.0))) if signed else grid


def float_map(exponent_bits: int, mantissa_bits: int, signed: bool = True) -> np.ndarray:
    """Returns the values of a small float over the largest of them, as bitsandbytes has them.

    All codes are finite, and the numbers without a leading 1 are a quarter of the usual ones.

    Args:
      exponent_bits: of a value.
      mantissa_bits: of a value.
      signed: with the negatives.

    Returns:
      float32, sorted; 0 once.

    Example:
      >>> from optkit.codecs import float_map
      >>> [round(float(x), 3) for x in float_map(2, 1, signed=False)]
      [0.0, 0.021, 0.167, 0.25, 0.333, 0.5, 0.667, 1.0]
    """
    fraction = np.arange(2**mantissa_bits) / 2**mantissa_bits
    rows = [fraction / 4.0, *((1.0 + fraction) * 2.0**e for e in range(2**exponent_bits - 1))]
    values = np.unique(np.concatenate(rows))
    values = values / values.max()
    return np.unique(np.concatenate([-values, values]) if signed else values).astype(np.float32)


@functools.cache
def table(kind: TableKind, signed: bool, bits: int = 8, exponent_bits: int | None = None) -> bytes:
    """Returns a table by name as float32 bytes (hashable: programs are keyed by it)."""
    if kind not in get_args(TableKind):
        raise ValueError(f"kind={kind!r} is none of {', '.join(get_args(TableKind))}")
    if kind == "dynamic":
        found = dynamic_map(signed, bits - 1 if exponent_bits is None else exponent_bits, bits)
    elif kind == "linear":
        found = linear_map(signed, bits)
    elif kind == "sixteenths":  # torchao's unsigned table of 4 bits: no 0, which would divide
        found = _unsigned(signed, kind, np.arange(1, 2**bits + 1) / 2**bits)
    elif kind == "nf4":
        if not signed:
            raise ValueError("kind='nf4' has both signs; give signed=True, or another kind")
        found = np.array(_NF4, np.float32)
    else:
        found = float_map(4 if kind == "e4m3" else 5, 3 if kind == "e4m3" else 2, signed)
    if len(found) > 2**bits:
        raise ValueError(f"kind={kind!r} has {len(found)} entries, too many for bits={bits}")
    return np.asarray(found, np.float32).tobytes()


def _unsigned(signed: bool, kind: str, values: np.ndarray) -> np.ndarray:
    if signed:
        raise ValueError(f"kind={kind!r} has no negative entries; give signed=False")
    return values
