"""Where the Gram form must start afresh: a simulation of its rounding on scalars."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import combinations, pairwise

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from optkit.linalg.coefficients import Coefficients, Row, get_coefficients

# Largest growth max|q| / min|q| accepted without a further reset, by the bits of the dtype. Chosen
# on Gaussian, cond-1e4, low-rank and rank-1 inputs so that the Gram form stays about as close to a
# float64 reference as the standard form in 16 bits, and within 1e-2 of it in float32 at worst
# (2e-4 with Jordan's coefficients).
_ACCEPTED_GROWTH = {16: 128.0, 32: 750.0, 64: 1e6}
_MOST_DEFAULT_RESETS = 3


def check_resets(resets: Iterable[int]) -> frozenset[int]:
    """Returns the resets as a set.

    Args:
      resets: step numbers, counted from 0.

    Returns:
      The same numbers.

    Raises:
      ValueError: a negative number.

    Example:
      >>> sorted(check_resets([4, 2]))
      [2, 4]
    """
    chosen = frozenset(int(i) for i in resets)
    if any(i < 0 for i in chosen):
        raise ValueError(f"resets are step numbers counted from 0, got {sorted(chosen)}")
    return chosen


def segments(rows: tuple[Row, ...], resets: Iterable[int]) -> list[tuple[Row, ...]]:
    """Cuts the rows of an iteration before each reset that is reached.

    Example:
      >>> [len(part) for part in segments(((1.0, 1.0, 1.0),) * 5, (0, 2, 9))]
      [2, 3]
    """
    starts = [0, *sorted(i for i in set(resets) if 0 < i < len(rows)), len(rows)]
    return [rows[start:stop] for start, stop in pairwise(starts) if start < stop]


def reset_growth(
    rows: tuple[Row, ...], resets: Iterable[int], delta: float, points: int = 10_000
) -> float:
    """Growth of Q when every Gram eigenvalue is too small by delta.

    For singular values x in logspace(0, -10): r = x^2 - delta, q = 1; each row multiplies q by
    z = a + b r + c r^2 and r by z^2; a reset sets x <- x q, r <- x^2 - delta, q <- 1. The growth is
    the largest max|q| / min|q| over the steps. Once delta has been amplified to about 1, r turns
    negative for good and the growth explodes.

    Args:
      rows: one (a, b, c) a step.
      resets: steps before which to reset.
      delta: absolute error of the Gram eigenvalues, about the unit round-off.
      points: size of the grid.

    Returns:
      The growth, infinite after an overflow.

    Example:
      >>> reset_growth(get_coefficients("jordan"), (2,), 4e-4) < 100
      True

    Reference: Zhang, Amsel, Chen, Dao, Gram Newton-Schulz (2026).
    """
    chosen = check_resets(resets)
    x = np.logspace(0, -10, points)
    r, q, growth = x * x - delta, np.ones_like(x), 1.0
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for i, (a, b, c) in enumerate(rows):
            if i > 0 and i in chosen:
                x = x * q
                r, q = x * x - delta, np.ones_like(x)
            z = a + r * (b + r * c)
            q, r = q * z, r * z * z
            spread = np.max(np.abs(q)) / np.min(np.abs(q))
            growth = max(growth, float(spread) if np.isfinite(spread) else float("inf"))
    return growth


def _best_resets(
    rows: tuple[Row, ...], count: int, delta: float, points: int
) -> tuple[float, tuple[int, ...]]:
    places = combinations(range(1, len(rows)), count)
    scored = ((reset_growth(rows, place, delta, points), place) for place in places)
    return min(scored, default=(float("inf"), ()))


def tune_resets(
    coefficients: Coefficients = "polar_express_1p05",
    steps: int | None = None,
    *,
    count: int = 1,
    delta: float = 4e-4,
) -> tuple[int, ...]:
    """Best places for a number of resets of the Gram form, by the growth of Q.

    Args:
      coefficients: name in `COEFFICIENTS`, a `CoefficientSet`, or rows (a, b, c).
      steps: number of steps; None takes the set's own.
      count: number of resets.
      delta: error of the Gram eigenvalues: 4e-4 stands for float16, 4e-3 for bfloat16.

    Returns:
      `count` step numbers in ascending order, for the `resets` of `gram_newton_schulz`.

    Raises:
      ValueError: no choice keeps `reset_growth` below 1e8, or there are too few steps.

    Example:
      >>> tune_resets("polar_express_1p05")
      (2,)

    Reference: Zhang, Amsel, Chen, Dao, Gram Newton-Schulz (2026).
    """
    rows = get_coefficients(coefficients, steps)
    if not 0 <= count <= max(len(rows) - 1, 0):
        room = max(len(rows) - 1, 0)
        raise ValueError(f"{len(rows)} steps have room for {room} resets, got count={count}")
    growth, best = _best_resets(rows, count, delta, 10_000)
    if not growth < 1e8:
        raise ValueError(
            f"with {count} resets the growth is {growth:.1e} at best (delta={delta}): allow more "
            "resets, use a wider dtype, or take the standard form"
        )
    return best


def default_resets(rows: tuple[Row, ...], dtype: DTypeLike) -> tuple[int, ...] | None:
    """Fewest resets that are safe for these rows in this dtype.

    The best placement of 0, 1, 2, 3 resets is tried in turn with delta = the unit round-off of the
    dtype, until the growth is small.

    Args:
      rows: one (a, b, c) a step.
      dtype: of the iteration.

    Returns:
      Step numbers in ascending order, or None where no placement is good enough and the standard
      form should be taken.

    Example:
      >>> jordan = get_coefficients("jordan")
      >>> default_resets(jordan, jnp.float32), default_resets(jordan, jnp.bfloat16)
      ((), (1, 3))
    """
    info = jnp.finfo(dtype)
    return _default_resets(tuple(rows), float(info.eps) / 2, info.bits)


@lru_cache(maxsize=256)
def _default_resets(rows: tuple[Row, ...], roundoff: float, bits: int) -> tuple[int, ...] | None:
    limit = _ACCEPTED_GROWTH[max(bits, 16)]
    for count in range(min(_MOST_DEFAULT_RESETS, max(len(rows) - 1, 0)) + 1):
        growth, best = _best_resets(rows, count, roundoff, 500)
        if growth <= limit:
            return best
    return None
